"""Helpers that run train.py in one or several processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from tests.tiny import write_config_file

ROOT = Path(__file__).parent.parent.parent
TIMES = ("images_per_s", "data_wait")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(config, workdir, *more, processes=1, devices=1, main="train.py", env=None):
    """Start the processes, with output to WORKDIR.PROCESS.log."""
    file = write_config_file(workdir.with_suffix(".config.py"), config)
    started = []
    port = free_port()
    for process in range(processes):
        command = [sys.executable, str(ROOT / main), *map(str, more)]
        if main == "train.py":
            command += ["--config", str(file), "--workdir", str(workdir)]
        if processes > 1:
            command += ["--coordinator", f"127.0.0.1:{port}"]
            command += ["--processes", str(processes), "--process", str(process)]
        environment = os.environ | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_PLATFORMS": "cpu",
            # Programs that the tests of one session share are compiled once.
            "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
            "PYTHONPATH": str(ROOT),
            **(env or {}),
        }
        with log_file(workdir, process).open("w") as log:
            started.append(
                subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
            )
    return started


def log_file(workdir, process=0):
    return workdir.with_suffix(f".{process}.log")


def said(workdir, process=0):
    return log_file(workdir, process).read_text()


def finish(started, timeout=600):
    """Return the exit statuses; kill the processes after `timeout` seconds."""
    try:
        return [process.wait(timeout) for process in started]
    finally:
        for process in started:
            process.kill()


def run(config, workdir, *more, status=0, **how):
    statuses = finish(start(config, workdir, *more, **how))
    assert statuses == [status] * len(statuses), said(workdir)


def lines(workdir):
    """Read metrics.jsonl without time measurements."""
    text = (workdir / "metrics.jsonl").read_text()
    return [
        {k: v for k, v in json.loads(line).items() if k not in TIMES} for line in text.splitlines()
    ]


def saved(workdir, step):
    """Read all arrays of a checkpoint."""
    path = (workdir / "checkpoints" / str(step) / "state").absolute()
    reader = ocp.PyTreeCheckpointHandler()
    tree = reader.metadata(path).tree
    how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return reader.restore(path, args=ocp.args.PyTreeRestore(item=tree, restore_args=how))
