"""A step that was not finite: which term, whose image, and a file to look at it again."""

import io
import zipfile
from collections.abc import Mapping, Sequence
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

from ssd_jax.config import Config, ConfigError, from_json, to_json
from ssd_jax.io import atomic_write, read_bytes
from ssd_jax.models.ssd import make_model, model_priors
from ssd_jax.training.state import Params, join_frozen, split_frozen
from ssd_jax.training.step import BATCH_KEYS, image_losses, image_targets
from ssd_jax.weights.files import MAX_BYTES


@dataclass(frozen=True)
class Diagnosis:
    """What one process's share of a step gives, image by image."""

    loss_loc: np.ndarray
    """float32 [b]: sum of the image's smooth L1, not divided by the positives."""
    loss_conf: np.ndarray
    """float32 [b]: sum of the image's cross entropy."""
    objects: np.ndarray
    """int [b]."""
    grad_norm: float
    """Of the share's gradient, not divided by the positives."""
    bad_layers: tuple[str, ...]
    """Layers whose gradient is not finite."""
    bad_images: tuple[int, ...]
    """Places in the batch of the images to blame; empty where no single one is."""

    @property
    def finite(self) -> bool:
        """Whether there is nothing to blame."""
        return not self.terms

    @property
    def terms(self) -> tuple[str, ...]:
        """What is not finite: loss_loc, loss_conf, or else the gradient."""
        terms = tuple(
            name for name in ("loss_loc", "loss_conf") if not np.isfinite(getattr(self, name)).all()
        )
        return terms or (("gradient",) if self.bad_layers else ())


@dataclass(frozen=True)
class NonFiniteStep:
    """A step to look at again: what a replay file holds."""

    step: int
    """The step that was tried, from 1."""
    image_ids: tuple[str, ...]
    batch: Mapping[str, np.ndarray]
    """image [b, S, S, 3], boxes [b, M, 4], labels [b, M], mask [b, M]: this process's share."""
    variables: Params
    """Parameters and batch statistics before the step."""
    config: Config


def diagnose(bad: NonFiniteStep) -> Diagnosis:
    """The share's losses and gradient once more, image by image, on one device.

    Where batch norm has carried one image's values into all of them, the running statistics tell
    them apart.
    """
    config = bad.config
    model = make_model(config.model, config.priors)
    priors = model_priors(config.model, config.priors)
    trained, frozen = split_frozen(bad.variables["params"], config.model.frozen_layers)
    batch = {name: bad.batch[name] for name in BATCH_KEYS}

    def losses(trained: Params, *, train: bool) -> tuple[Array, Array]:
        variables = {**bad.variables, "params": join_frozen(trained, frozen)}
        outputs = model.apply(variables, batch["image"], train=train, mutable=["batch_stats"])
        (loc, conf), _ = outputs
        targets = image_targets(batch, priors, config.priors.variances, config.train)
        loss = image_losses(loc, conf, targets, config.train)
        return loss.loc, loss.conf

    def total(trained: Params) -> tuple[Array, tuple[Array, Array]]:
        loc, conf = losses(trained, train=True)
        return jnp.sum(loc) + jnp.sum(conf), (loc, conf)

    grads, (loc, conf) = jax.device_get(jax.jit(jax.grad(total, has_aux=True))(trained))
    wrong = ~np.isfinite(loc) | ~np.isfinite(conf)
    if wrong.all() and config.model.batch_norm:
        alone = jax.device_get(jax.jit(partial(losses, train=False))(trained))
        wrong = ~np.isfinite(alone[0]) | ~np.isfinite(alone[1])
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
        bad_layers=tuple(sorted(layers)),
        bad_images=() if wrong.all() else tuple(map(int, np.flatnonzero(wrong))),
    )


def describe(bad: NonFiniteStep, found: Diagnosis) -> str:
    """One line: which term of which step is not finite, and whose image it is."""
    if found.finite:
        return f"step {bad.step}: finite in this share of the batch, norm {found.grad_norm:.4g}"
    what = " and ".join(found.terms)
    if what == "gradient":
        what = f"the gradient of {_some(found.bad_layers)}"
    ids = [bad.image_ids[k] for k in found.bad_images]
    whose = f"image {_some(ids)}" if ids else f"no single image of {_some(bad.image_ids)}"
    return f"step {bad.step}: {what} not finite; {whose}"


def table(bad: NonFiniteStep, found: Diagnosis) -> Table:
    """The losses of each image; those to blame are marked."""
    rows = Table(box=box.SIMPLE_HEAD)
    for name in ("image", "objects", "loss_loc", "loss_conf", ""):
        rows.add_column(name, justify="left" if name in ("image", "") else "right")
    for k, image_id in enumerate(bad.image_ids):
        mark = "not finite" if k in found.bad_images else ""
        losses = (f"{found.loss_loc[k]:.4g}", f"{found.loss_conf[k]:.4g}")
        rows.add_row(escape(image_id), str(found.objects[k]), *losses, mark)
    return rows


def write_bad_step(path: Path, bad: NonFiniteStep) -> None:
    """Write a replay file, whole or not at all."""
    flat = traverse_util.flatten_dict(bad.variables, sep="/")
    arrays: dict[str, Any] = {
        "step": bad.step,
        "image_ids": np.array(bad.image_ids),
        "config": to_json(bad.config),
        **{f"batch/{name}": bad.batch[name] for name in BATCH_KEYS},
        **{f"variables/{name}": np.asarray(value) for name, value in flat.items()},
    }
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, buffer.getvalue())


def read_bad_step(path: Path) -> NonFiniteStep:
    """Read what `write_bad_step` wrote.

    Raises ConfigError, naming the file, for one that is missing, of another kind, damaged, or
    larger than 4 GiB, packed or unpacked.
    """
    try:
        content = io.BytesIO(read_bytes(path, MAX_BYTES))
        with zipfile.ZipFile(content) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > MAX_BYTES:
            raise ConfigError(
                f"it would unpack to {size / 2**30:.0f} GiB; name one of WORKDIR/nonfinite"
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
    except Exception:  # whatever a broken file makes its reader raise
        raise ConfigError(
            f"--replay: {path} is no file of a step; name one of WORKDIR/nonfinite"
        ) from None


def _some(names: Sequence[Any], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more
