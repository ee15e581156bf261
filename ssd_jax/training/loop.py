"""A training run, from its config to the final evaluation."""

import time
from contextlib import closing
from pathlib import Path

import jax

from ssd_jax.checkpoints.writer import CheckpointManager
from ssd_jax.config import Config, ConfigError, to_json
from ssd_jax.data.errors import DataError
from ssd_jax.distributed import is_main_process, use_compilation_cache
from ssd_jax.evaluation.report.output_dir import OutputError
from ssd_jax.inference.detect import DetectFn, StoppedError
from ssd_jax.io import atomic_write
from ssd_jax.kernels.conv2d import set_cpu_conv
from ssd_jax.models.ssd import make_model
from ssd_jax.training.build import build_training
from ssd_jax.training.data import open_data, resolve_config
from ssd_jax.training.display import Display
from ssd_jax.training.metric_writer import MetricWriter, read_scores
from ssd_jax.training.preemption import AbandonedError, Preempted, PreemptionHandler
from ssd_jax.training.profiler import StepProfiler
from ssd_jax.training.start import check_initial_weights, resume_run, start_run
from ssd_jax.training.step import replicate
from ssd_jax.training.trainer import Trainer
from ssd_jax.training.workdir import Workdir


def train(config: Config, workdir: Path, *, resume: bool = False) -> float:
    """Train a detector and return its final mAP.

    Args:
        config: the experiment.
        workdir: folder for config.json, metrics.jsonl, tensorboard/, checkpoints/ and eval/.
        resume: whether to continue from the newest complete checkpoint, if there is one.

    Raises:
        ConfigError, DataError: the run cannot start; nothing is written.
        DataError: an image cannot be read; the steps before it are saved.
        WorkdirError: another run uses `workdir`.
        LostWorkdirError: `workdir` was deleted or moved during the run.
        OutputError: an evaluation cannot be written; the state is saved.
        NonFiniteError: the loss or the gradient is not finite; the state before it is saved.
        SaveError, CheckpointError: checkpoints cannot be written or read.
        LogError: the metrics cannot be read or written.
        Preempted: SIGTERM or SIGINT arrived; the state is saved.
    """
    start_time = time.perf_counter()
    with Workdir(workdir) as folder, Display(quiet=not is_main_process()) as display:
        use_compilation_cache(config.runtime.compilation_cache_dir)
        set_cpu_conv(config.runtime.cpu_conv)
        has_checkpoints = (workdir / "checkpoints").exists()
        if has_checkpoints and not resume:
            raise ConfigError(
                f"--workdir: {workdir} already contains a run; add --resume or name another"
            )
        with display.phase("reading the data"):
            config = resolve_config(config, devices=jax.device_count())
            if not has_checkpoints:
                check_initial_weights(config.model)
            data = open_data(config)

        training = build_training(config)
        with display.phase("making the network"):
            state = training.init_state()
        checkpoints = CheckpointManager(workdir, config.train)
        start = resume_run(state, data.batches, checkpoints, workdir, config) if resume else None
        start = start or start_run(state, data.batches, config)
        state = replicate(start.state, jax.local_devices())
        start = start._replace(state=state)
        detect = DetectFn(make_model(config.model, config.priors), config)

        notes = [*folder.notes, training.describe(state.params), *data.notes, *start.notes]
        scores = read_scores(workdir, config.train.best_metric) if is_main_process() else {}
        notes += checkpoints.open(scores)
        if is_main_process():
            _write_config(workdir / "config.json", config)

        with (
            PreemptionHandler(display.info) as preemption,
            checkpoints,
            MetricWriter(
                workdir, start=int(start.state.step), enabled=is_main_process(), display=display
            ) as writer,
            closing(StepProfiler(workdir / "profile", config.train.profile_steps)) as profiler,
            data.batches,
        ):
            for note in notes:
                display.info(note)
            services = (folder, display, preemption, checkpoints, writer, profiler)
            trainer = Trainer(training, data, start, detect, *services, start_time=start_time)
            mean_ap = _run(trainer, checkpoints, workdir)
            checkpoints.close()
            folder.check()
            display.info(_summarize(mean_ap, checkpoints.best, config, workdir))
    return mean_ap


def _write_config(file: Path, config: Config) -> None:
    try:
        atomic_write(file, to_json(config).encode())
    except OSError as error:
        raise OutputError(f"{file} cannot be written ({error.strerror}); free some space") from None


def _summarize(
    mean_ap: float, best: tuple[int, float] | None, config: Config, workdir: Path
) -> str:
    text = f"done: mAP {mean_ap:.4f}; "
    if best is not None:
        text += f"best checkpoint: step {best[0]}, {config.train.best_metric} {best[1]:.4f}; "
    return f"{text}checkpoints, metrics and images are in {workdir}"


def _run(trainer: Trainer, checkpoints: CheckpointManager, workdir: Path) -> float:
    """Run the trainer; if it is stopped or fails, save the steps taken so far."""
    try:
        return trainer.run()
    except (StoppedError, AbandonedError):
        if trainer.global_step > trainer.first_step:
            trainer.save()
            checkpoints.close()
            point = f"after step {trainer.global_step} and saved"
        else:
            point = "before the first step; nothing to save"
        raise Preempted(
            f"stopped by a signal {point}; continue with --workdir {workdir} --resume"
        ) from None
    except (OutputError, DataError):
        trainer.flush()
        trainer.save()
        checkpoints.close()
        raise
