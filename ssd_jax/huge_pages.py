"""Memory in pages of 2 MB, which a step of hundreds of MB on a CPU is a tenth faster with.

glibc reads the setting when a program starts, so the program is started once more with it.
"""

import os
import re
import sys
from pathlib import Path

_TUNABLE = "glibc.malloc.hugetlb"
_SINCE = (2, 35)
_KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def use_huge_pages() -> None:
    """Start this program again, in the same process, with malloc asking for huge pages.

    Returns where that is so already, where `GLIBC_TUNABLES` says otherwise
    (`glibc.malloc.hugetlb=0` is a way to go without), where the kernel does not give pages on
    request, without glibc 2.35, in a debugger, and where the program is run by another one, such as
    a notebook. To be called first: what was done before is lost.
    """
    given = os.environ.get("GLIBC_TUNABLES", "")
    if _TUNABLE in given or not (_possible() and _own_program()):
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [given, f"{_TUNABLE}=1"]))
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _possible() -> bool:
    try:
        library = os.confstr("CS_GNU_LIBC_VERSION") or ""
        on_request = "[madvise]" in _KERNEL.read_text()
    except (OSError, ValueError, AttributeError):
        return False
    version = re.fullmatch(r"glibc (\d+)\.(\d+).*", library)
    return on_request and version is not None and tuple(map(int, version.groups())) >= _SINCE


def _own_program() -> bool:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    started = (
        spec.name.removesuffix(".__main__") in sys.orig_argv
        if spec
        else Path(sys.argv[0]).name in [Path(argument).name for argument in sys.orig_argv]
    )
    return bool(sys.executable) and started and sys.gettrace() is None
