"""Functions of the Python API, `ssd_jax.train` and `ssd_jax.evaluate`.

They raise `ssd_jax.UserError`, or one of its subclasses, for everything that the caller can put
right.
"""

import dataclasses
from pathlib import Path

from rich.console import Console

from ssd_jax.config import Config, ConfigError
from ssd_jax.config_file import load_config
from ssd_jax.distributed import is_main_process
from ssd_jax.evaluation.checkpoints import default_out_dir, evaluate_checkpoints
from ssd_jax.evaluation.metrics.evaluation import Evaluation
from ssd_jax.training import loop
from ssd_jax.weights.trained import find_trained, read_trained_config


def train(config: Config | str | Path, workdir: str | Path, *, resume: bool = False) -> float:
    """Train a detector and return its final mAP.

    Call it in the main thread: SIGTERM and SIGINT save the state and end the run.

    Args:
        config: the experiment: a Config, the name of one of the project's configs, or the path of
            a config file.
        workdir: folder of the run's output files.
        resume: whether to continue from the newest complete checkpoint, if there is one.

    Raises:
        UserError: the run cannot start or go on, see `ssd_jax.training.loop.train`.
    """
    if not isinstance(config, Config):
        config = load_config(config, field="config")
    return loop.train(config, Path(workdir), resume=resume)


def evaluate(
    checkpoint: str | Path,
    config: Config | None = None,
    *,
    best: bool = False,
    out_dir: str | Path | None = None,
    save_detections: bool = False,
) -> Evaluation:
    """Evaluate a checkpoint and write the output files.

    Args:
        checkpoint: run, checkpoint, file of weights or name of published weights, see
            `ssd_jax.weights.trained.find_trained`.
        config: its `data` and `eval` sections replace those saved with the checkpoint; its network
            must be the same.
        best: whether to use the run's best checkpoint instead of its newest.
        out_dir: folder of metrics.json, report.html and the images; default: eval/STEP in the
            run's folder, or eval/NAME for a file of weights.
        save_detections: whether to also write the detections.

    Raises:
        UserError: the checkpoint or the data cannot be read, or the files cannot be written.
    """
    path = find_trained(checkpoint, best=best, field="checkpoint")
    saved = read_trained_config(path)
    if config is None:
        config = saved
    elif (config.model, config.priors) != (saved.model, saved.priors):
        raise ConfigError(
            f"config has another network than {path}; replace the data and eval sections of the "
            "checkpoint's config"
        )
    config = dataclasses.replace(saved, data=config.data, eval=config.eval)
    (evaluation,) = evaluate_checkpoints(
        {".": (path, config)},
        Path(out_dir) if out_dir else default_out_dir(path),
        console=Console(highlight=False, soft_wrap=True, quiet=not is_main_process()),
        save_detections=save_detections,
    )
    return evaluation
