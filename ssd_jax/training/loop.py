"""The training run, from config to final evaluation; it reads from top to bottom."""

import dataclasses
import math
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ssd_jax.config import Config, ConfigError, UserError, to_json
from ssd_jax.data.pipeline import train_batches
from ssd_jax.data.sources import find_classes, open_source
from ssd_jax.evaluation.detect import make_detect
from ssd_jax.evaluation.evaluate import evaluate_source
from ssd_jax.models.initial import init_from
from ssd_jax.models.pretrained import load_pretrained
from ssd_jax.models.ssd import feature_sizes, make_model, model_priors
from ssd_jax.training.checkpoint import Checkpoints
from ssd_jax.training.log import RunLog
from ssd_jax.training.state import create_train_state, make_optimizer, make_schedule
from ssd_jax.training.step import AXIS, pmap_train_step, replicate, shard_batch, train_step
from ssd_jax.visualize import replace_file


class TrainingError(UserError):
    """A run that cannot go on; the message says at which step and what to try."""


def train(config: Config, workdir: Path, *, resume: bool = False) -> float:
    """Train as `config` says and return the final mAP.

    `workdir` gets config.json, metrics.jsonl, tensorboard/, checkpoints/ and eval/. With `resume`
    the run goes on from its newest checkpoint.

    Raises ConfigError or DataError before anything is written if the run cannot start, and
    TrainingError if the loss is not finite.
    """
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

    model = make_model(config.model, config.priors, AXIS)
    priors = model_priors(config.model, config.priors)
    optimizer = make_optimizer(config.optim, config.train.steps)
    schedule = make_schedule(config.optim, config.train.steps)
    state = create_train_state(model, optimizer, jax.random.key(config.train.seed))
    notes = [_describe(state.params, priors, config)]
    if config.model.pretrained and not resume:
        params, report = load_pretrained(
            state.params,
            config.model.pretrained,
            channels=config.model.pretrained_channels,
            scale=config.model.pretrained_scale,
        )
        state = state.replace(params=params)
        notes.append(f"pretrained: {report}")
    if config.model.init_from and not resume:
        variables, taken = init_from(
            {"params": state.params, "batch_stats": state.batch_stats}, config
        )
        state = state.replace(**variables)
        notes.append(f"init_from: {taken}")
    for name, split in (("training", source), ("evaluation", eval_source)):
        notes += [f"{name} sets aside {line}" for line in getattr(split, "set_aside", ())]
    state = replicate(state, devices)

    step_fn = pmap_train_step(
        partial(
            train_step,
            model=model,
            optimizer=optimizer,
            priors=priors,
            variances=config.priors.variances,
            config=config.train,
        ),
        devices,
    )
    detect = make_detect(make_model(config.model, config.priors), config)

    workdir.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(workdir, keep=config.train.keep)
    if resume and checkpoints.latest_step() is not None:
        state, place = checkpoints.restore(state)
        batches.set_state(place)
        notes.append(f"resumed after step {int(state.step)}")
    step = int(state.step)
    first_process = jax.process_index() == 0
    if first_process:
        replace_file(workdir / "config.json", to_json(config).encode())

    with (
        RunLog(workdir, start=step, steps=config.train.steps, write=first_process) as log,
        batches,
    ):
        for note in notes:
            log.say(note)

        def evaluate() -> float:
            result = evaluate_source(
                detect,
                {"params": state.params, "batch_stats": state.batch_stats},
                eval_source,
                config,
                out_dir=workdir / "eval" / str(step),
                console=log.console,
                extra={"step": step},
            )
            values = {f"AP/{c.name}": c.ap for c in result.classes if not math.isnan(c.ap)}
            log.write(step, {"mAP": result.mean_ap, **values}, kind="eval")
            return result.mean_ap

        mean_ap = math.nan
        history: list[Mapping[str, Any]] = []
        waited, since = 0.0, time.perf_counter()
        if step < config.train.steps:
            log.say(f"compiling for {len(devices)} {devices[0].platform} device(s)")
        while step < config.train.steps:
            started = time.perf_counter()
            batch = shard_batch(next(batches), len(devices))
            # Steps are only queued here: while the devices still work on the last one, a wait for
            # data costs nothing.
            if not history or history[-1]["loss"].is_ready():
                waited += time.perf_counter() - started
            state, metrics = step_fn(state, batch)
            step += 1
            history.append(metrics)
            log.advance(step)
            last = step == config.train.steps

            if step % config.train.log_every == 0 or last:
                # The one place in the loop that waits for the devices.
                values = _mean(jax.device_get(history))
                elapsed = time.perf_counter() - since
                if not math.isfinite(values["loss"]):
                    raise TrainingError(
                        f"the loss is not finite between steps {step - len(history) + 1} and "
                        f"{step}; try a lower optim.learning_rate, optim.warmup_steps, or "
                        "optim.clip_norm 10"
                    )
                values["learning_rate"] = float(schedule(step - 1))
                values["images_per_s"] = len(history) * config.train.batch_size / elapsed
                values["data_wait"] = waited / elapsed
                log.write(step, values, kind="train")
                history, waited, since = [], 0.0, time.perf_counter()
            pause = time.perf_counter()
            if step % config.train.checkpoint_every == 0 or last:
                checkpoints.save(state, batches.get_state(), config)
            if last or (config.train.eval_every and step % config.train.eval_every == 0):
                mean_ap = evaluate()
            since += time.perf_counter() - pause
        if math.isnan(mean_ap):  # resumed after the last step
            mean_ap = evaluate()
        checkpoints.close()
        log.say(f"done: mAP {mean_ap:.4f}; checkpoint, metrics and pictures are in {workdir}")
    return mean_ap


def resolve(config: Config, *, devices: int) -> Config:
    """The config with everything filled in that depends on the data, checked for this machine.

    Raises ConfigError if the batch cannot be shared among the devices or the image is too small,
    DataError if the classes cannot be found.
    """
    batch_size = config.train.batch_size
    if batch_size % devices:
        raise ConfigError(
            f"train.batch_size {batch_size} must divide by the {devices} devices; "
            f"try {batch_size - batch_size % devices or devices}"
        )
    feature_sizes(config.model)
    classes = find_classes(config.data, config.model.classes)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, classes=classes))


def _describe(params: Any, priors: np.ndarray, config: Config) -> str:
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return (
        f"SSD {config.model.image_size}: {count:,} parameters, {len(priors):,} priors, "
        f"{len(config.model.classes)} classes: {', '.join(config.model.classes)}"
    )


def _mean(history: list[Mapping[str, Any]]) -> dict[str, float]:
    return {name: float(np.mean([h[name] for h in history])) for name in history[0]}
