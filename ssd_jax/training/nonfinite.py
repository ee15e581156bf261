"""Non-finite steps: the terms, layers and images responsible, and replay files."""

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from jax import Array
from rich import box
from rich.markup import escape
from rich.table import Table

from ssd_jax.config import Config, ConfigError, from_json, shorten, to_json
from ssd_jax.distributed import CollectiveError
from ssd_jax.io import atomic_write, read_bytes
from ssd_jax.models.ssd import make_model, model_priors
from ssd_jax.training.state import Params, join_frozen, split_frozen
from ssd_jax.training.step import BATCH_KEYS, image_losses, image_targets
from ssd_jax.weights.files import MAX_BYTES


class NonFiniteError(CollectiveError):
    """Error of a run with a non-finite step; the message names the step and what to try."""


@dataclass(frozen=True)
class Diagnosis:
    """Losses and gradient of one process's share of a step, image by image."""

    loss_loc: np.ndarray
    """float32 [b]: smooth L1 of each image, not divided by the positives."""
    loss_conf: np.ndarray
    """float32 [b]: cross entropy of each image, not divided by the positives."""
    objects: np.ndarray
    """int [b]: number of objects of each image."""
    grad_norm: float
    """Norm of the share's gradient, not divided by the positives."""
    nonfinite_layers: tuple[str, ...]
    """Layers with a non-finite gradient."""
    nonfinite_images: tuple[int, ...]
    """Positions in the batch of images with a non-finite loss; empty if all images have one."""

    @property
    def finite(self) -> bool:
        """True if losses and gradient are finite."""
        return not self.terms

    @property
    def terms(self) -> tuple[str, ...]:
        """Non-finite terms: loss_loc, loss_conf, or otherwise the gradient."""
        terms = tuple(
            name for name in ("loss_loc", "loss_conf") if not np.isfinite(getattr(self, name)).all()
        )
        return terms or (("gradient",) if self.nonfinite_layers else ())


@dataclass(frozen=True)
class NonFiniteStep:
    """A non-finite step and its inputs, as in a replay file."""

    step: int
    """Number of the step, counted from 1."""
    image_ids: tuple[str, ...]
    batch: Mapping[str, np.ndarray]
    """image [b, S, S, 3], boxes [b, M, 4], labels [b, M], mask [b, M]: this process's share."""
    variables: Params
    """Parameters and batch statistics before the step."""
    config: Config


def diagnose(step: NonFiniteStep) -> Diagnosis:
    """Compute the share's losses and gradient again, image by image, on one device.

    If batch norm spreads one image's values to all images, the running statistics are used instead,
    so that the losses of the images are independent.
    """
    config = step.config
    model = make_model(config.model, config.priors)
    priors = model_priors(config.model, config.priors)
    trained, frozen = split_frozen(step.variables["params"], config.model.frozen_layers)
    batch = {name: step.batch[name] for name in BATCH_KEYS}

    def losses(trained: Params, *, train: bool) -> tuple[Array, Array]:
        variables = {**step.variables, "params": join_frozen(trained, frozen)}
        (loc, conf), _ = model.apply(
            variables, batch["image"], train=train, mutable=["batch_stats"]
        )
        targets = image_targets(batch, priors, config.priors.variances, config.train)
        loss = image_losses(loc, conf, targets, config.train)
        return loss.loc, loss.conf

    def total(trained: Params) -> tuple[Array, tuple[Array, Array]]:
        loc, conf = losses(trained, train=True)
        return jnp.sum(loc) + jnp.sum(conf), (loc, conf)

    grads, (loc, conf) = jax.device_get(jax.jit(jax.grad(total, has_aux=True))(trained))
    nonfinite = ~(np.isfinite(loc) & np.isfinite(conf))
    if nonfinite.all() and config.model.batch_norm:
        independent = jax.device_get(jax.jit(partial(losses, train=False))(trained))
        nonfinite = ~np.isfinite(independent).all(axis=0)
    layers = {
        "/".join(path[:-1])
        for path, leaf in traverse_util.flatten_dict(grads).items()
        if not np.isfinite(leaf).all()
    }
    return Diagnosis(
        loss_loc=loc,
        loss_conf=conf,
        objects=batch["mask"].sum(axis=1),
        grad_norm=float(optax.tree.norm(grads)),
        nonfinite_layers=tuple(sorted(layers)),
        nonfinite_images=() if nonfinite.all() else tuple(map(int, np.flatnonzero(nonfinite))),
    )


def describe(step: NonFiniteStep, diagnosis: Diagnosis) -> str:
    """Return one line that names the step's non-finite terms and the images responsible."""
    if diagnosis.finite:
        norm = f"norm {diagnosis.grad_norm:.4g}"
        return f"step {step.step}: finite in this share of the batch, {norm}"
    terms = " and ".join(diagnosis.terms)
    if terms == "gradient":
        terms = f"the gradient of {shorten(diagnosis.nonfinite_layers, 8)}"
    ids = [step.image_ids[k] for k in diagnosis.nonfinite_images]
    images = (
        f"image {shorten(ids, 8)}" if ids else f"no single image of {shorten(step.image_ids, 8)}"
    )
    return f"step {step.step}: {terms} not finite; {images}"


def make_table(step: NonFiniteStep, diagnosis: Diagnosis) -> Table:
    """Tabulate the losses of each image and mark non-finite ones."""
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("image", "objects", "loss_loc", "loss_conf", ""):
        table.add_column(name, justify="left" if name in ("image", "") else "right")
    for k, image_id in enumerate(step.image_ids):
        mark = "not finite" if k in diagnosis.nonfinite_images else ""
        losses = (f"{diagnosis.loss_loc[k]:.4g}", f"{diagnosis.loss_conf[k]:.4g}")
        table.add_row(escape(image_id), str(diagnosis.objects[k]), *losses, mark)
    return table


def report_nonfinite(step: NonFiniteStep, workdir: Path) -> str:
    """Write the step's replay file and return one line with its diagnosis and advice."""
    file = workdir / "nonfinite" / f"step{step.step}-process{jax.process_index()}.npz"
    try:
        write_replay(file, step)
        replay = f"inspect it with ssd-jax train --replay {file}"
    except OSError as error:
        replay = f"{file} cannot be written ({error.strerror})"
    return (
        f"{describe(step, diagnose(step))}; the state before it is saved; {replay}; try a lower "
        "optim.learning_rate, optim.warmup_steps, optim.grad_clip_norm 10, or "
        "train.on_nonfinite skip"
    )


def write_replay(path: Path, step: NonFiniteStep) -> None:
    """Write a replay file atomically."""
    flat = traverse_util.flatten_dict(step.variables, sep="/")
    arrays: dict[str, Any] = {
        "step": step.step,
        "image_ids": np.array(step.image_ids),
        "config": to_json(step.config),
        **{f"batch/{name}": step.batch[name] for name in BATCH_KEYS},
        **{f"variables/{name}": np.asarray(value) for name, value in flat.items()},
    }
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, buffer.getvalue())


def read_replay(path: Path) -> NonFiniteStep:
    """Read a file of `write_replay`.

    Raises:
        ConfigError: the file is missing, damaged, not a replay file, or larger than 4 GiB, packed
            or unpacked.
    """
    try:
        content = io.BytesIO(read_bytes(path, MAX_BYTES))
        with zipfile.ZipFile(content) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > MAX_BYTES:
            raise ConfigError(
                f"it would unpack to {size / 2**30:.0f} GiB; name one in WORKDIR/nonfinite"
            )
        content.seek(0)
        with np.load(content, allow_pickle=False) as file:
            flat = {
                tuple(name.split("/")[1:]): file[name]
                for name in file.files
                if name.startswith("variables/")
            }
            return NonFiniteStep(
                step=int(file["step"]),
                image_ids=tuple(map(str, file["image_ids"])),
                batch={name: file[f"batch/{name}"] for name in BATCH_KEYS},
                variables=traverse_util.unflatten_dict(flat),
                config=from_json(str(file["config"])),
            )
    except OSError as error:
        raise ConfigError(f"--replay: {path} cannot be read ({error.strerror or error})") from None
    except ConfigError as error:
        raise ConfigError(f"--replay: {path}: {error}") from None
    except Exception:  # a damaged file can raise any exception in its reader
        raise ConfigError(
            f"--replay: {path} is not a replay file; name one in WORKDIR/nonfinite"
        ) from None
