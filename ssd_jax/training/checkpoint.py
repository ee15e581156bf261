"""Orbax checkpoints: state, place in the data and resolved config, saved together.

`ssd_jax.models.restore` reads a network back without any of the training.
"""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from ssd_jax.config import Config, to_json
from ssd_jax.models.restore import check_shapes
from ssd_jax.training.state import TrainState


class Checkpoints:
    """The checkpoints of one run, in WORKDIR/checkpoints/STEP.

    Saving goes on in the background; `close` waits for it. A checkpoint appears under its name
    only when it is complete.
    """

    def __init__(self, workdir: Path, *, keep: int) -> None:
        self._manager = ocp.CheckpointManager(
            (workdir / "checkpoints").absolute(),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True),
        )

    def save(self, state: TrainState, data: dict[str, Any], config: Config) -> None:
        """Save what the run needs to go on after `state.step`."""
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                data=ocp.args.JsonSave(data),
                config=ocp.args.JsonSave({"config": to_json(config)}),
            ),
        )

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, None where there is none."""
        return self._manager.latest_step()

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest state, shaped and placed as `like`, and the place in the data.

        Raises ConfigError, naming the first array that differs, for a state of another shape.
        """
        step = self._manager.latest_step()
        path = self._manager.directory / str(step)
        check_shapes(path, ocp.PyTreeCheckpointHandler().metadata(path / "state").tree, like)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()
            ),
        )
        return restored.state, restored.data

    def close(self) -> None:
        """Wait for a save in the background and release the manager."""
        self._manager.close()
