"""The training run, from config to final evaluation; it reads from top to bottom."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from ssd_jax.checkpoints.reader import read_config
from ssd_jax.checkpoints.trust import with_local_fields
from ssd_jax.checkpoints.writer import CheckpointManager
from ssd_jax.config import Config, ConfigError, UserError, to_json
from ssd_jax.data.errors import DataError
from ssd_jax.data.pipeline import train_batches
from ssd_jax.data.sources import DataSource, find_classes, open_source
from ssd_jax.distributed import (
    CollectiveError,
    barrier,
    broadcast_json,
    is_main_process,
    use_compilation_cache,
)
from ssd_jax.evaluation.evaluate import evaluate_source
from ssd_jax.evaluation.report.metrics_json import flat_metrics, metric_names
from ssd_jax.evaluation.report.output_dir import OutputError, staged_on_main_process
from ssd_jax.inference.detect import StoppedError, make_detect
from ssd_jax.io import atomic_write
from ssd_jax.kernels.conv2d import set_cpu_conv
from ssd_jax.models.ssd import feature_sizes, make_model, model_priors
from ssd_jax.training.metric_writer import MetricWriter, read_scores
from ssd_jax.training.nonfinite import NonFiniteStep, describe, diagnose, write_bad_step
from ssd_jax.training.pending_metrics import PendingStep, PendingSteps
from ssd_jax.training.preemption import AbandonedError, Preempted, PreemptionHandler
from ssd_jax.training.profiler import Profile
from ssd_jax.training.progress import Display, Progress
from ssd_jax.training.state import (
    Params,
    TrainState,
    create_train_state,
    decay_per_step,
    make_optimizer,
    make_schedule,
    start_from,
)
from ssd_jax.training.step import (
    AXIS,
    Batch,
    pmap_train_step,
    replicate,
    shard_batch,
    train_step,
)
from ssd_jax.training.workdir import Workdir
from ssd_jax.weights.finetune import find_init, init_from


class TrainingError(CollectiveError):
    """A run that cannot go on; the message says at which step and what to try."""


def train(config: Config, workdir: Path, *, resume: bool = False) -> float:
    """Train as `config` says and return the final mAP.

    `workdir` gets config.json, metrics.jsonl, tensorboard/, checkpoints/ and eval/. With `resume`
    the run goes on from its newest whole checkpoint.

    Raises:
        ConfigError, DataError: the run cannot start, before anything is written.
        DataError: an image cannot be used, after the steps until there are saved.
        WorkdirError: another run uses `workdir`.
        LostWorkdirError: `workdir` was deleted or moved meanwhile.
        OutputError: an evaluation cannot be written; the state is saved.
        TrainingError: the loss or the gradient is not finite; the state before it is saved.
        SaveError, CheckpointError: checkpoints cannot be written or read.
        Preempted: SIGTERM or SIGINT came; a checkpoint is saved.
    """
    with Workdir(workdir) as folder, Display(quiet=not is_main_process()) as display:
        return _train(config, folder, display, resume=resume)


def _train(config: Config, folder: Workdir, display: Display, *, resume: bool) -> float:
    started = time.perf_counter()
    workdir = folder.path
    use_compilation_cache(config.runtime.compilation_cache_dir)
    set_cpu_conv(config.runtime.cpu_conv)
    devices = jax.local_devices()
    if not resume and (workdir / "checkpoints").exists():
        raise ConfigError(f"--workdir: {workdir} has a run already; add --resume or name another")
    with display.phase("reading the data"):
        config = resolve(config, devices=jax.device_count())
        if not (workdir / "checkpoints").exists():
            _check_start(config)
        source = open_source(config.data, config.data.train_split, config.model.classes)
        eval_source = open_source(config.data, config.data.eval_split, config.model.classes)
        batches = train_batches(
            source,
            config.data,
            image_size=config.model.image_size,
            mean=config.model.image_mean,
            batch_size=config.train.batch_size // jax.process_count(),
            seed=config.train.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        _check_batch_size(config.train.batch_size, batches.get_state()["records"])

    model = make_model(config.model, config.priors, AXIS)
    priors = model_priors(config.model, config.priors)
    optimizer = make_optimizer(config.optim)
    ema = config.optim.ema_decay > 0
    with display.phase("making the network"):
        key = jax.random.key(config.train.seed)
        state = create_train_state(model, optimizer, key, ema=ema)
    notes = [*folder.notes, _describe(state.params, priors, config)]
    for name, split in (("training", source), ("evaluation", eval_source)):
        notes += [f"{name} sets aside {line}" for line in getattr(split, "set_aside", ())]

    checkpoints = CheckpointManager(workdir, config.train)
    place: Mapping[str, Any] = {"data": batches.get_state(), "unlogged": [], "evaluated": True}
    if resume and (saved := checkpoints.restore(state)):
        state, place, told = saved
        batches.set_state(place["data"])
        notes += [*told, f"resumed after step {int(state.step)}"]
    else:
        variables, told = _initial_variables(state, config)
        state = start_from(state, variables, ema=ema)
        notes += told
    step = int(state.step)
    state = replicate(state, devices)

    step_fn = pmap_train_step(
        partial(
            train_step,
            model=model,
            optimizer=optimizer,
            schedule=make_schedule(config.optim, batch_size=config.train.batch_size),
            priors=priors,
            variances=config.priors.variances,
            config=config.train,
            ema_decay=config.optim.ema_decay,
        )
    )
    detect = make_detect(make_model(config.model, config.priors), config)
    mean_ap: float | None = None
    if resume and step >= config.train.steps and place["evaluated"]:
        mean_ap = _evaluated_before(workdir, step, config)
        if mean_ap is not None:
            notes.append(f"step {step} is the last one and was evaluated already")

    notes += checkpoints.open()
    if is_main_process():
        _write_config(workdir / "config.json", config)

    with (
        PreemptionHandler(display.say) as interrupts,
        checkpoints,
        MetricWriter(workdir, start=step, write=is_main_process(), display=display) as log,
        closing(Profile(workdir / "profile", config.train.profile_steps)) as profile,
        batches,
    ):
        for note in notes:
            log.say(note)
        window = PendingSteps(
            place["unlogged"],
            # A CPU is host and device at once, and its steps are long against what the host does
            # between them: with one step, the run stops after the step in which a signal came.
            in_flight=1 if devices[0].platform == "cpu" else 2,
            skip=config.train.on_nonfinite == "skip",
        )
        progress = Progress(
            display, first=step, steps=config.train.steps, platform=devices[0].platform
        )
        evaluated = bool(place["evaluated"])

        def settle() -> None:
            """Wait for the queued steps; if one was not finite, save the state before it and stop.

            Raises TrainingError then.
            """
            nonlocal state
            window.settle()
            progress.update(step - len(window))
            if (bad := window.bad) is None:
                return
            state = state.replace(bad_steps=jnp.zeros_like(state.bad_steps))
            batches.set_state({**batches.get_state(), "position": bad.position})
            save()
            checkpoints.close()  # the message says that it is saved
            raise TrainingError(_report_nonfinite(bad.batch, source, state, config, workdir))

        def save() -> None:
            folder.check()
            log.sync()
            here = {"data": batches.get_state(), "unlogged": window.known, "evaluated": evaluated}
            checkpoints.save(state, here, config)

        def evaluate() -> None:
            """Evaluate the state and log its figures; StoppedError if a signal comes meanwhile."""
            nonlocal mean_ap, evaluated
            folder.check()
            interrupts.stop_point = "in the evaluation, then saving"
            with (
                display.phase(f"evaluating after step {step}"),
                staged_on_main_process(out_dir := workdir / "eval" / str(step)) as part,
            ):
                evaluate_state = partial(
                    evaluate_source,
                    detect,
                    state.variables,
                    eval_source,
                    config,
                    out_dir=part,
                    console=display.console,
                    name=f"{workdir.absolute().name}, step {step}",
                    extra={"step": step},
                    stop=lambda: interrupts.requested,
                )
                # Several processes have to leave at the same point.
                alone = jax.process_count() == 1
                evaluation = interrupts.call(evaluate_state) if alone else evaluate_state()
                folder.check()
            interrupts.stop_point = f"after step {step}, then saving"
            mean_ap, evaluated = evaluation.results[0].mean_ap, True
            values = flat_metrics(evaluation.results)
            score = values.get(config.train.best_metric, math.nan)
            if (best := checkpoints.add_score(step, score)) is not None:
                values["best_step"] = best
            log.write(step, values, kind="eval")
            log.picture(step, "detections", out_dir / "images.jpg")

        first = logged = step
        try:
            if not evaluated:  # the run was stopped before it could be
                evaluate()
            waited, since = 0.0, time.perf_counter()
            while step < config.train.steps:
                profile.before(step - first)
                before, asked = batches.get_state(), time.perf_counter()
                host_batch = next(batches)
                # While the devices still work on the last step, a wait for data costs nothing.
                if window.idle:
                    waited += time.perf_counter() - asked
                window.make_room()
                progress.update(step - len(window))
                if window.bad is not None:
                    settle()
                if interrupts.requested and jax.process_count() == 1:
                    batches.set_state(before)
                    settle()
                    raise StoppedError
                batch = shard_batch(
                    host_batch,
                    len(devices),
                    stop=interrupts.requested,
                    decay_per_step=decay_per_step(config.optim, steps=config.train.steps),
                )
                if step == first:
                    # Compiled ahead, so that no process is in its first step minutes before others.
                    interrupts.stop_point = "now: nothing is to be saved"
                    target = f"{jax.device_count()} {devices[0].platform} device(s)"
                    with display.phase(f"compiling for {target}"):
                        interrupts.call(partial(_compile, step_fn, state, batch))
                step += 1
                interrupts.stop_point = f"after step {step}, then saving"
                state, metrics = step_fn(state, batch)
                window.add(PendingStep(metrics, host_batch, before["position"]))
                checkpoints.check()
                if step == first + 1:
                    with display.phase("taking the first step"):
                        jax.block_until_ready(metrics)
                    log.say(f"first step after {time.perf_counter() - started:.1f} s")
                    logged, waited, since = step, 0.0, time.perf_counter()

                last = step == config.train.steps
                log_due = last or step % config.train.log_every == 0
                eval_due = last or _divides(config.train.eval_every, step)
                # What is evaluated is saved as well: it may be the best one.
                save_due = eval_due or step % config.train.checkpoint_every == 0
                # One process stops at once, several at a step that all of them know of.
                stop = interrupts.requested
                if jax.process_count() > 1:
                    stop = window.asked_to_stop
                if not (log_due or save_due or eval_due or stop):
                    continue

                # The one place in the loop that waits for all steps.
                settle()
                folder.check()
                if log_due:
                    elapsed = time.perf_counter() - since
                    values = window.pop_mean()
                    if step > logged:
                        values["images_per_s"] = (step - logged) * config.train.batch_size / elapsed
                        values["data_wait"] = waited / elapsed
                    log.write(step, values, kind="train")
                    logged, waited, since = step, 0.0, time.perf_counter()
                    for _ in range(batches.take_restarts()):
                        log.say("a worker process had died; the workers were started again")
                pause = time.perf_counter()
                evaluated = not eval_due
                if stop:
                    raise StoppedError
                if eval_due:
                    evaluate()
                if save_due:
                    save()
                pause = time.perf_counter() - pause
                since += pause
                progress.pause(pause)
            if mean_ap is None:  # resumed after the last step
                evaluate()
            assert mean_ap is not None
        except (StoppedError, AbandonedError):
            if step > first:
                save()
                checkpoints.close()
                done = f"after step {step} and saved"
            else:
                done = "before the first step; nothing was to be saved"
            raise Preempted(
                f"stopped by a signal {done}; continue with --workdir {workdir} --resume",
            ) from None
        except OutputError:
            save()
            checkpoints.close()
            raise
        except DataError:
            settle()
            save()
            checkpoints.close()
            raise
        checkpoints.close()
        folder.check()
        best = ""
        if checkpoints.best is not None:
            best_step, score = checkpoints.best
            best = f"best checkpoint: step {best_step}, {config.train.best_metric} {score:.4f}; "
        log.say(f"done: mAP {mean_ap:.4f}; {best}checkpoints, metrics and images are in {workdir}")
    return mean_ap


def resolve(config: Config, *, devices: int) -> Config:
    """The config with everything filled in that depends on the data, checked for this machine.

    Raises ConfigError if the batch cannot be shared among the devices, the image is too small or
    the best checkpoints are to be kept by a metric that there is not; DataError if the classes
    cannot be found.
    """
    batch_size, parts = config.train.batch_size, config.train.grad_accumulation_steps
    if batch_size % (devices * parts):
        many = f" times train.grad_accumulation_steps {parts}" if parts > 1 else ""
        raise ConfigError(
            f"train.batch_size {batch_size} must divide by the {devices} devices{many}; "
            f"try {batch_size - batch_size % (devices * parts) or devices * parts}"
        )
    feature_sizes(config.model)
    classes = find_classes(config.data, config.model.classes)
    known = metric_names(config.eval.metrics, classes)
    if config.train.keep_best and config.train.best_metric not in known:
        raise ConfigError(
            f"train.best_metric is {config.train.best_metric!r}; use one of {', '.join(known)}"
        )
    return dataclasses.replace(config, model=dataclasses.replace(config.model, classes=classes))


def _check_start(config: Config) -> None:
    """Raise ConfigError if what a fresh run starts from is missing, before the network is made."""
    if config.model.init_from:
        find_init(Path(config.model.init_from))


def _check_batch_size(batch_size: int, records: int) -> None:
    """Raises ConfigError, before anything is compiled, for a batch larger than the data set."""
    if batch_size > records:
        raise ConfigError(
            f"train.batch_size is {batch_size} and the data set has {records} images to train on; "
            f"use {records} or less"
        )


def _compile(step_fn: jax.stages.Wrapped, state: TrainState, batch: Batch) -> None:
    step_fn.lower(state, batch).compile()
    barrier("compiled")


def _evaluated_before(workdir: Path, step: int, config: Config) -> float | None:
    """Return the mAP that the run logged for its checkpoint of `step`; None if it has none.

    It has none either where `config` would give other figures.
    """
    found = None
    with contextlib.suppress(OSError, UserError):
        saved = read_config(workdir / "checkpoints" / str(step))
        if _figures_depend_on(saved) == _figures_depend_on(config):
            found = read_scores(workdir, "mAP").get(step)
    return cast(float | None, broadcast_json(found))


def _figures_depend_on(config: Config) -> Config:
    """The config with everything at its default that an evaluation's figures do not depend on."""
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


def _write_config(file: Path, config: Config) -> None:
    try:
        atomic_write(file, to_json(config).encode())
    except OSError as error:
        raise OutputError(f"{file} cannot be written ({error.strerror}); make room") from None


def _initial_variables(state: TrainState, config: Config) -> tuple[Params, list[str]]:
    """What a fresh run starts from, and what is to be told of it."""
    variables, notes = state.variables, []
    if config.model.init_from:
        variables, report = init_from(variables, config)
        notes.append(f"init_from: {report}")
    return variables, notes


def _report_nonfinite(
    batch: Mapping[str, np.ndarray],
    source: DataSource,
    state: TrainState,
    config: Config,
    workdir: Path,
) -> str:
    """What to say of a batch whose step from `state` is not finite; it is written for replay."""
    bad = NonFiniteStep(
        step=int(state.step) + 1,
        image_ids=tuple(source.annotation(int(i)).image_id for i in batch["index"]),
        batch=batch,
        variables=jax.device_get({"params": state.params, "batch_stats": state.batch_stats}),
        config=config,
    )
    file = workdir / "nonfinite" / f"step{bad.step}-process{jax.process_index()}.npz"
    try:
        write_bad_step(file, bad)
        replay = f"train.py --replay {file} looks at it again"
    except OSError as error:
        replay = f"{file} cannot be written ({error.strerror})"
    return (
        f"{describe(bad, diagnose(bad))}; the state before it is saved, and {replay}; try a lower "
        "optim.learning_rate, optim.warmup_steps, optim.grad_clip_norm 10, or "
        "train.on_nonfinite skip"
    )


def _divides(every: int, step: int) -> bool:
    return every > 0 and step % every == 0


def _describe(params: Any, priors: np.ndarray, config: Config) -> str:
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return (
        f"SSD {config.model.image_size}: {count:,} parameters, {len(priors):,} priors, "
        f"{len(config.model.classes)} classes: {', '.join(config.model.classes)}"
    )
