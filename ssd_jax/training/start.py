"""Start of a run: initial weights, or the state of a checkpoint."""

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from ssd_jax.checkpoints.reader import read_config
from ssd_jax.checkpoints.trust import with_local_fields
from ssd_jax.checkpoints.writer import CheckpointManager
from ssd_jax.config import Config, ModelConfig, UserError
from ssd_jax.data.pipeline import TrainBatches
from ssd_jax.distributed import broadcast_json
from ssd_jax.training.metric_writer import read_scores
from ssd_jax.training.state import TrainState
from ssd_jax.weights.finetune import init_from
from ssd_jax.weights.trained import find_trained


class Start(NamedTuple):
    """State and progress with which a run starts or resumes."""

    state: TrainState
    run_progress: Mapping[str, Any]
    """data: state of the batches; unlogged: metrics of steps without a log line; evaluated: whether
    an evaluation that was due after the last step is done. As JSON."""
    notes: list[str]
    """Lines for the user."""
    mean_ap: float | None = None
    """Final mAP of a run that has taken and evaluated its last step already."""


def check_initial_weights(config: ModelConfig) -> None:
    """Find the initial weights, or download them; raise UserError if they are missing."""
    if config.init_from:
        find_trained(config.init_from, field="model.init_from")


def start_run(state: TrainState, batches: TrainBatches, config: Config) -> Start:
    """Start a run: load the initial weights that the config names into `state`."""
    variables, notes = state.variables, []
    if config.model.init_from:
        variables, report = init_from(variables, config)
        notes.append(f"init_from: {report}")
    run_progress = {"data": batches.get_state(), "unlogged": [], "evaluated": True}
    return Start(state.replace_variables(variables), run_progress, notes)


def resume_run(
    state: TrainState,
    batches: TrainBatches,
    checkpoints: CheckpointManager,
    workdir: Path,
    config: Config,
) -> Start | None:
    """Resume a run and its batches from the newest complete checkpoint.

    Returns:
        None if the run has no checkpoint.

    Raises:
        ConfigError, CheckpointError: see `CheckpointManager.restore`.
    """
    restored = checkpoints.restore(state)
    if restored is None:
        return None
    state, run_progress, notes = restored
    batches.set_state(run_progress["data"])
    step = int(state.step)
    notes = [*notes, f"resumed after step {step}"]
    mean_ap = None
    if step >= config.train.steps and run_progress["evaluated"]:
        mean_ap = _find_logged_map(workdir, step, config)
        if mean_ap is not None:
            notes.append(f"step {step} is the last one and has already been evaluated")
    return Start(state, run_progress, notes, mean_ap)


def _find_logged_map(workdir: Path, step: int, config: Config) -> float | None:
    """Find the mAP that the run logged for its checkpoint of `step`.

    Returns:
        None if the step was not evaluated, or if its evaluation would differ with `config`.
    """
    mean_ap = None
    with contextlib.suppress(OSError, UserError):
        saved = read_config(workdir / "checkpoints" / str(step))
        if _evaluation_fields(saved) == _evaluation_fields(config):
            mean_ap = read_scores(workdir, "mAP").get(step)
    return cast(float | None, broadcast_json(mean_ap))


def _evaluation_fields(config: Config) -> Config:
    """Return the config with all fields at their defaults that do not affect the metrics."""
    default, config = Config(), with_local_fields(config)
    names = (
        "batch_size",
        "num_visualizations",
        "report",
        "report_score_threshold",
        "num_report_images",
    )
    unused = {name: getattr(default.eval, name) for name in names}
    return dataclasses.replace(
        default,
        model=config.model,
        priors=config.priors,
        data=config.data,
        eval=dataclasses.replace(config.eval, **unused),
    )
