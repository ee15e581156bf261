"""The training run, from config to final evaluation; it reads from top to bottom."""

import dataclasses
import math
import time
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssd_jax.config import Config, ConfigError, to_json
from ssd_jax.data.errors import DataError
from ssd_jax.data.pipeline import train_batches
from ssd_jax.data.sources import Source, find_classes, open_source
from ssd_jax.evaluation.detect import StoppedError, make_detect
from ssd_jax.evaluation.evaluate import evaluate_source
from ssd_jax.evaluation.report import figures, metric_names
from ssd_jax.models.initial import init_from
from ssd_jax.models.pretrained import load_pretrained
from ssd_jax.models.ssd import feature_sizes, make_model, model_priors
from ssd_jax.runtime import TogetherError, is_first_process, meet, use_compile_cache
from ssd_jax.training.checkpoint import Checkpoints
from ssd_jax.training.interrupts import Interrupted, Interrupts
from ssd_jax.training.log import RunLog
from ssd_jax.training.profile import Profile
from ssd_jax.training.replay import BadStep, describe, diagnose, write_bad_step
from ssd_jax.training.state import (
    Params,
    TrainState,
    create_train_state,
    make_optimizer,
    make_schedule,
    start_from,
)
from ssd_jax.training.step import AXIS, pmap_train_step, replicate, shard_batch, train_step
from ssd_jax.training.window import Queued, Window
from ssd_jax.visualize import replace_file


class TrainingError(TogetherError):
    """A run that cannot go on; the message says at which step and what to try."""


def train(config: Config, workdir: Path, *, resume: bool = False) -> float:
    """Train as `config` says and return the final mAP.

    `workdir` gets config.json, metrics.jsonl, tensorboard/, checkpoints/ and eval/. With `resume`
    the run goes on from its newest whole checkpoint.

    Raises:
        ConfigError, DataError: the run cannot start, before anything is written.
        DataError: an image cannot be used, after the steps until there are saved.
        TrainingError: the loss or the gradient is not finite; the state before it is saved.
        SaveError, CheckpointError: checkpoints cannot be written or read.
        Interrupted: SIGTERM or SIGINT came; a checkpoint is saved.
    """
    started = time.perf_counter()
    use_compile_cache(config.train.compile_cache)
    devices = jax.local_devices()
    config = resolve(config, devices=jax.device_count())
    if not resume and (workdir / "checkpoints").exists():
        raise ConfigError(f"--workdir: {workdir} has a run already; add --resume or name another")

    source = open_source(config.data, config.data.train_split, config.model.classes)
    eval_source = open_source(config.data, config.data.eval_split, config.model.classes)
    batches = train_batches(
        source,
        config.data,
        image_size=config.model.image_size,
        mean=config.model.mean,
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
    state = create_train_state(model, optimizer, jax.random.key(config.train.seed), ema=ema)
    notes = [_describe(state.params, priors, config)]
    for name, split in (("training", source), ("evaluation", eval_source)):
        notes += [f"{name} sets aside {line}" for line in getattr(split, "set_aside", ())]

    checkpoints = Checkpoints(workdir, config.train)
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
            schedule=make_schedule(
                config.optim, steps=config.train.steps, batch_size=config.train.batch_size
            ),
            priors=priors,
            variances=config.priors.variances,
            config=config.train,
            ema_decay=config.optim.ema_decay,
        )
    )
    detect = make_detect(make_model(config.model, config.priors), config)

    workdir.mkdir(parents=True, exist_ok=True)
    notes += checkpoints.open()
    if is_first_process():
        replace_file(workdir / "config.json", to_json(config).encode())

    with (
        Interrupts() as interrupts,
        checkpoints,
        RunLog(workdir, start=step, steps=config.train.steps, write=is_first_process()) as log,
        closing(Profile(workdir / "profile", config.train.profile_steps)) as profile,
        batches,
    ):
        for note in notes:
            log.say(note)
        window = Window(place["unlogged"])
        evaluated = bool(place["evaluated"])
        mean_ap = math.nan

        def settle() -> None:
            """Wait for the queued steps; if one was not finite, save the state before it and stop.

            Raises TrainingError then.
            """
            nonlocal state
            bad = window.settle(skip=config.train.on_nonfinite == "skip")
            if bad is None:
                return
            state = state.replace(bad_steps=jnp.zeros_like(state.bad_steps))
            batches.set_state({**batches.get_state(), "position": bad.position})
            save()
            raise TrainingError(_blame(bad.batch, source, state, config, workdir))

        def save() -> None:
            log.sync()
            here = {"data": batches.get_state(), "unlogged": window.known, "evaluated": evaluated}
            checkpoints.save(state, here, config)

        def evaluate() -> None:
            """Evaluate the state and log its figures; StoppedError if a signal comes meanwhile."""
            nonlocal mean_ap, evaluated
            evaluation = evaluate_source(
                detect,
                state.variables,
                eval_source,
                config,
                out_dir=(out_dir := workdir / "eval" / str(step)),
                console=log.console,
                name=f"{workdir.absolute().name}, step {step}",
                extra={"step": step},
                stop=lambda: interrupts.requested,
            )
            mean_ap, evaluated = evaluation.results[0].mean_ap, True
            values = figures(evaluation.results)
            score = values.get(config.train.best_metric, math.nan)
            if (best := checkpoints.add_score(step, score)) is not None:
                values["best_step"] = best
            log.write(step, values, kind="eval")
            log.picture(step, "detections", out_dir / "pictures.jpg")

        try:
            if not evaluated:  # the run was stopped before it could be
                evaluate()
            if step < config.train.steps:
                log.say(f"compiling for {jax.device_count()} {devices[0].platform} device(s)")
            first = logged = step
            waited, since = 0.0, time.perf_counter()
            while step < config.train.steps:
                profile.before(step - first)
                position, asked = batches.get_state()["position"], time.perf_counter()
                host_batch = next(batches)
                # Steps are only queued here: while the devices still work on the last one, a wait
                # for data costs nothing.
                if window.idle:
                    waited += time.perf_counter() - asked
                batch = shard_batch(host_batch, len(devices), stop=interrupts.requested)
                if step == first:
                    # Compiled ahead, so that no process is in its first step minutes before others.
                    step_fn.lower(state, batch).compile()
                    meet("compiled")
                state, metrics = step_fn(state, batch)
                step += 1
                window.add(Queued(metrics, host_batch, position))
                log.advance(step)
                checkpoints.check()
                if step == first + 1:
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

                # The one place in the loop that waits for the devices.
                settle()
                if log_due:
                    elapsed = time.perf_counter() - since
                    values = window.take_mean()
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
                since += time.perf_counter() - pause
            if math.isnan(mean_ap):  # resumed after the last step
                evaluate()
        except StoppedError:
            save()
            raise Interrupted(
                f"stopped by a signal after step {step} and saved; go on with "
                f"--workdir {workdir} --resume"
            ) from None
        except DataError:
            settle()
            save()
            raise
        checkpoints.close()
        best = ""
        if checkpoints.best is not None:
            best_step, score = checkpoints.best
            best = f"best checkpoint: step {best_step}, {config.train.best_metric} {score:.4f}; "
        log.say(
            f"done: mAP {mean_ap:.4f}; {best}checkpoints, metrics and pictures are in {workdir}"
        )
    return mean_ap


def resolve(config: Config, *, devices: int) -> Config:
    """The config with everything filled in that depends on the data, checked for this machine.

    Raises ConfigError if the batch cannot be shared among the devices, the image is too small or
    the best checkpoints are to be kept by a metric that there is not; DataError if the classes
    cannot be found.
    """
    batch_size, parts = config.train.batch_size, config.train.accumulate
    if batch_size % (devices * parts):
        many = f" times train.accumulate {parts}" if parts > 1 else ""
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


def _check_batch_size(batch_size: int, records: int) -> None:
    """Raises ConfigError, before anything is compiled, for a batch larger than the data set."""
    if batch_size > records:
        raise ConfigError(
            f"train.batch_size is {batch_size} and the data set has {records} images to train on; "
            f"use {records} or less"
        )


def _initial_variables(state: TrainState, config: Config) -> tuple[Params, list[str]]:
    """What a fresh run starts from, and what is to be told of it."""
    variables, notes = state.variables, []
    if config.model.pretrained:
        params, report = load_pretrained(
            variables["params"],
            config.model.pretrained,
            channels=config.model.pretrained_channels,
            scale=config.model.pretrained_scale,
        )
        variables = {**variables, "params": params}
        notes.append(f"pretrained: {report}")
    if config.model.init_from:
        variables, taken = init_from(variables, config)
        notes.append(f"init_from: {taken}")
    return variables, notes


def _blame(
    batch: Mapping[str, np.ndarray],
    source: Source,
    state: TrainState,
    config: Config,
    workdir: Path,
) -> str:
    """What to say of a batch whose step from `state` is not finite; it is written for replay."""
    bad = BadStep(
        step=int(state.step) + 1,
        image_ids=tuple(source.annotation(int(i)).image_id for i in batch["index"]),
        batch=batch,
        variables=jax.device_get({"params": state.params, "batch_stats": state.batch_stats}),
        config=config,
    )
    file = workdir / "nonfinite" / f"step{bad.step}-process{jax.process_index()}.npz"
    write_bad_step(file, bad)
    return (
        f"{describe(bad, diagnose(bad))}; the state before it is saved, and train.py --replay "
        f"{file} looks at it again; try a lower optim.learning_rate, optim.warmup_steps, "
        "optim.clip_norm 10, or train.on_nonfinite skip"
    )


def _divides(every: int, step: int) -> bool:
    return every > 0 and step % every == 0


def _describe(params: Any, priors: np.ndarray, config: Config) -> str:
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return (
        f"SSD {config.model.image_size}: {count:,} parameters, {len(priors):,} priors, "
        f"{len(config.model.classes)} classes: {', '.join(config.model.classes)}"
    )
