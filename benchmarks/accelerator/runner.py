"""Run parts one after another, each in a separate process with a time limit."""

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

from benchmarks.accelerator.context import Context, SkipPartError, read_results, write_results
from benchmarks.accelerator.parts import Part

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
    """Run the parts in order within a time limit, and return the status of each.

    If `seconds` exceeds the sum of the parts' limits, all limits are scaled up; the last part may
    use all remaining time. A part is dropped if less than its minimum is left. A part that fails
    or is stopped at its limit does not affect the next ones.

    Args:
        parts: Parts to run.
        out: Folder of the results; PART.json, PART.log and status.json are written.
        bundle: The prepared folder, or None.
        seconds: Time for all parts (s).
        tiny: Measure at reduced size, without limits of single parts.
        after_part: Called after each part, to write the report so far.
    """
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds
    scale = max(1.0, seconds / sum(part.limit for part in parts))
    # Keep the parts that an earlier run measured in the same folder.
    status = read_results(out, STATUS)
    for part in parts:
        left = end - time.monotonic()
        limit = left if tiny or part is parts[-1] else min(left, scale * part.limit)
        if limit < part.minimum:
            result = {"status": "dropped", "reason": f"only {limit:.0f} s were left"}
        else:
            print(f"{part.name}: up to {limit:.0f} s", flush=True)
            result = run_part(part, out, bundle=bundle, seconds=limit, tiny=tiny)
            print(f"  {result['status']} in {result['seconds']:.0f} s")
        status[part.name] = result
        write_results(out, STATUS, status)
        after_part()
    return status


def run_part(
    part: Part, out: Path, *, bundle: Path | None, seconds: float, tiny: bool
) -> dict[str, Any]:
    """Run one part and return {"status": STATUS, "seconds": ..., "limit": ...}.

    STATUS is "done", "failed" (with "exit_code" and "error", the end of the log), "cut" at the
    limit, or "skipped" (with "reason").
    """
    options = {
        **{"part": part.name, "out": str(out), "bundle": bundle and str(bundle)},
        **{"tiny": tiny, "seconds": seconds},
    }
    environment = {"JAX_COMPILATION_CACHE_DIR": str((bundle or out) / "cache"), **os.environ}
    if tiny:  # most of its time is compilation
        environment.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
    log = out / f"{part.name}.log"
    started = time.monotonic()
    result: dict[str, Any] = {"status": "done", "limit": seconds}
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, part.function, json.dumps(options)],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            if code := process.wait(timeout=seconds):
                result |= {"status": "failed", "exit_code": code}
        except subprocess.TimeoutExpired:
            result["status"] = "cut"
        finally:
            # The group includes workers that the part has started.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    result["seconds"] = time.monotonic() - started
    if result["status"] == "failed":
        lines = log.read_text(errors="replace").splitlines()
        if result["exit_code"] == _SKIPPED:
            return {"status": "skipped", "seconds": result["seconds"], "reason": lines[-1]}
        result["error"] = "\n".join(lines[-_LOG_LINES:])
    return result


def main() -> None:
    """Run one part in this process: MODULE:FUNCTION and the Context's fields as JSON."""
    module, _, function = sys.argv[1].partition(":")
    options = json.loads(sys.argv[2])
    for name in ("out", "bundle"):
        options[name] = options[name] and Path(options[name])
    try:
        getattr(importlib.import_module(module), function)(Context(**options))
    except SkipPartError as reason:
        print(reason)
        raise SystemExit(_SKIPPED) from None


if __name__ == "__main__":
    main()
