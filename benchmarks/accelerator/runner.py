"""Run parts one after another, each in a process of its own with a time limit."""

import argparse
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.accelerator.context import Context, SkipPartError, read_results, results_file
from benchmarks.accelerator.parts import Part
from ssd_jax.io import atomic_write

STATUS = "status"
_LOG_LINES = 25
_SKIPPED = 77
"""Exit code of a part that cannot run here."""


def run_parts(
    parts: Sequence[Part],
    out: Path,
    *,
    bundle: Path | None,
    seconds: float,
    tiny: bool,
    after_part: Callable[[], Any],
) -> dict[str, dict[str, Any]]:
    """Run the parts within `seconds`, earlier ones first, and return the status of each.

    Where there is more time than their limits ask for, all limits grow alike; the last part may
    use all that is left. A part is dropped if less than its minimum is left. A part that fails, or
    is ended at its limit, does not keep the next ones from running.

    Args:
        parts: In their order.
        out: Folder of the results; PART.json, PART.log and status.json are written.
        bundle: The prepared folder, or None.
        seconds: Time for all parts (s).
        tiny: Whether to measure in miniature.
        after_part: Called after each part, to write the report so far.
    """
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds
    scale = max(1.0, seconds / sum(part.limit for part in parts))
    # Parts that an earlier run with the same folder has measured stay in the report.
    status = read_results(out, STATUS)
    for part in parts:
        left = end - time.monotonic()
        # A miniature shows that the program runs, on however slow a machine.
        unlimited = tiny or part is parts[-1]
        limit = left if unlimited else min(left, scale * part.limit)
        if limit < part.minimum:
            status[part.name] = {"status": "dropped", "reason": f"only {limit:.0f} s were left"}
        else:
            print(f"{part.name}: up to {limit:.0f} s", flush=True)
            status[part.name] = run_part(part, out, bundle=bundle, seconds=limit, tiny=tiny)
            print(f"  {status[part.name]['status']} in {status[part.name]['seconds']:.0f} s")
        atomic_write(results_file(out, STATUS), (json.dumps(status, indent=2) + "\n").encode())
        after_part()
    return status


def run_part(
    part: Part, out: Path, *, bundle: Path | None, seconds: float, tiny: bool
) -> dict[str, Any]:
    """Run one part; returns {"status": STATUS, "seconds": ..., "limit": ...}.

    STATUS is "done", "failed" (with "error", the end of the log), "cut" at the limit, or "skipped"
    (with "reason").
    """
    command = [sys.executable, "-m", "benchmarks.accelerator.runner", part.name, part.function]
    command += ["--out", str(out), "--seconds", str(seconds)]
    command += ["--bundle", str(bundle)] if bundle else []
    command += ["--tiny"] if tiny else []
    cache = (bundle or out) / "cache"
    environment = {"JAX_COMPILATION_CACHE_DIR": str(cache), **os.environ}
    if tiny:  # compiling takes longest
        environment.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
    started = time.monotonic()
    result: dict[str, Any] = {"status": "done", "limit": seconds}
    with (out / f"{part.name}.log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            if code := process.wait(timeout=seconds):
                result |= {"status": "failed", "exit_code": code}
        except subprocess.TimeoutExpired:
            result["status"] = "cut"
        finally:
            # Also worker processes that the part left behind.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    result["seconds"] = time.monotonic() - started
    if result["status"] == "failed":
        lines = (out / f"{part.name}.log").read_text(errors="replace").splitlines()
        if result["exit_code"] == _SKIPPED:
            return {"status": "skipped", "seconds": result["seconds"], "reason": lines[-1]}
        result["error"] = "\n".join(lines[-_LOG_LINES:])
    return result


def main() -> None:
    """Run one part in this process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part")
    parser.add_argument("function")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    module, _, function = args.function.partition(":")
    context = Context(args.part, args.out, args.bundle, args.tiny, args.seconds)
    try:
        getattr(importlib.import_module(module), function)(context)
    except SkipPartError as reason:
        print(reason)
        raise SystemExit(_SKIPPED) from None


if __name__ == "__main__":
    main()
