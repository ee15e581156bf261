"""Programs whose standard output is closed, full or ASCII finish their work."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Prints, writes a file, and exits with the given status.
PROGRAM = """
import sys
from ssd_jax.cli.run import run_main

def main(arguments):
    from rich.console import Console
    for _ in range(2000):
        print("a line of a hundred characters that fills a pipe and a buffer, " + "x" * 40)
    Console().print("[bold]ü → 你[/]", "\\udcff", sys.stdout.isatty())
    print("ä", file=sys.stderr)
    open(arguments[0], "w").write("done")
    return int(arguments[1])

sys.argv[0] = "program"
raise SystemExit(run_main(main))
"""


def run(redirection, file, status=0, **environment):
    """Run the program under a shell redirection; return its status, stdout and stderr."""
    command = f'exec "$0" -c "$1" "$2" {status} {redirection}'
    done = subprocess.run(
        ["bash", "-c", command, sys.executable, PROGRAM, str(file)],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        timeout=60,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize(
    ("redirection", "status", "message"),
    [
        (
            ">/dev/full",
            2,
            "program: the standard output cannot be written (No space left on device): the output "
            "is lost\n",
        ),
        (">&-", 0, ""),
        ("> >(exec true)", 0, ""),
        ("2>&-", 0, None),
        ("2>/dev/full", 0, None),
        ("<&- >&- 2>&-", 0, None),
        (">/dev/full 2>/dev/full", 2, None),
    ],
)
def test_unwritable_output_does_not_stop_the_program(redirection, status, message, tmp_path):
    code, _, err = run(redirection, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "done"
    assert code == status
    assert err == ("" if message is None else "ä\n" + message)


def test_slow_reader_of_a_nonblocking_pipe_gets_all_output(tmp_path):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "file"), "0"],
        stdout=writer,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"},
    )
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        text = stream.read(1000)
        time.sleep(0.5)  # the pipe is full: it holds 65,536 bytes
        text += stream.read()
    _, err = program.communicate(timeout=60)
    assert (program.returncode, err.decode()) == (0, "ä\n")
    assert text.count(b"\n") == 2001
    assert text.startswith(b"a line")


def test_exit_status_is_kept(tmp_path):
    assert run(">/dev/full", tmp_path / "file", 1)[0] == 1


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_characters_outside_the_encoding_are_escaped(tmp_path, encoding):
    code, out, err = run("", tmp_path / "file", PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert (code, out.count("\n")) == (0, 2001)
    last = out.splitlines()[-1]
    if encoding == "ascii":
        assert last == r"\xfc \u2192 \u4f60 \udcff False"
        assert err == "\\xe4\n"
    else:
        assert last == r"ü → 你 \udcff False"
        assert err == "ä\n"


@pytest.mark.parametrize("arguments", [["predict.py", "--help"], ["train.py", "--help"]])
def test_help_on_a_full_device_is_one_error_line(arguments):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            timeout=60,
            text=True,
        )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "the standard output cannot be written" in done.stderr
