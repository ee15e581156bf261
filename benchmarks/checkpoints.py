"""Checkpoints of SSD300 during training: time for which saving blocks, and time to restore.

The peers are torch.save and torch.load of the same arrays, which verify nothing and block
throughout.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.inputs import voc_config
from benchmarks.report import print_table
from ssd_jax.checkpoints.writer import CheckpointManager
from ssd_jax.models.ssd import make_model
from ssd_jax.training.state import create_train_state, make_optimizer


def run(rounds: int) -> dict[str, Any]:
    """Print the table and return the figures."""
    config = voc_config()
    state = create_train_state(
        make_model(config.model, config.priors),
        make_optimizer(config.optim),
        jax.random.key(0),
    )
    times: dict[str, list[float]] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        begun = time.perf_counter()
        result = call()
        times.setdefault(name, []).append(time.perf_counter() - begun)
        return result

    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder)
        with CheckpointManager(workdir, config.train) as checkpoints:
            checkpoints.open()
            for step in range(rounds):
                now = state.replace(step=jax.numpy.int32(step))
                timed("save, blocking", lambda now=now: checkpoints.save(now, {}, config))
                timed("save, in the background", checkpoints._manager.wait_until_finished)
                restored = timed("restore", lambda: checkpoints.restore(jax.device_get(state)))
                assert restored is not None
                assert int(restored[0].step) == step
                _time_torch(timed, state, workdir / "state.pt")
    figures = {name: {"ms": 1e3 * float(np.median(values))} for name, values in times.items()}
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e6
    print_table(f"checkpoint of {size:,.0f} MB", figures)
    return figures | {"size_mb": size}


def _time_torch(timed: Callable[..., Any], state: Any, path: Path) -> None:
    try:
        import torch
    except ImportError:
        return
    tensors = [torch.from_numpy(np.array(leaf)) for leaf in jax.tree.leaves(state)]
    timed("torch.save", lambda: torch.save(tensors, path))
    timed("torch.load", lambda: torch.load(path))
