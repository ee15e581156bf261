"""VGG16's convolutions from a file, for the base of a new network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssd_jax.config import BASE_LAYERS, ConfigError
from ssd_jax.io import is_file


class LoadReport(NamedTuple):
    """What a file gave to the base."""

    loaded: tuple[str, ...]
    """Layers whose kernel and bias came from the file."""
    fresh: tuple[str, ...]
    """Layers of the base that keep their initial values."""
    unused: tuple[str, ...]
    """Arrays in the file that no layer takes."""

    def __str__(self) -> str:
        """One line for the log."""
        text = f"loaded {', '.join(self.loaded)}; starts fresh: {', '.join(self.fresh) or 'none'}"
        return text + (f"; unused: {', '.join(self.unused)}" if self.unused else "")


def load_pretrained(
    params: Mapping[str, Any], path: str | Path, *, channels: str, scale: float = 1.0
) -> tuple[dict[str, Any], LoadReport]:
    """A copy of the network's `params` with the base's convolutions from `path`, and a report.

    The file is .npz or .safetensors and holds LAYER/w (HWIO) and LAYER/b, e.g. conv1_1/w.
    `channels` is the order, "bgr" or "rgb", that its conv1_1 expects; the network eats RGB, so a
    BGR kernel is turned round. The last layer loaded has its kernel and bias, and so its output,
    multiplied by `scale`.

    Raises ConfigError, naming the file, if it cannot be read, holds no layer of the base, holds
    half of one, or if a shape or a value does not fit.
    """
    arrays = _read(Path(path))
    base = dict(params["base"])
    loaded = []
    for name in BASE_LAYERS:
        if f"{name}/w" not in arrays and f"{name}/b" not in arrays:
            continue
        conv = dict(base[name]["conv"])
        for key, leaf in (("w", "kernel"), ("b", "bias")):
            value = arrays.pop(f"{name}/{key}", None)
            if value is None:
                raise ConfigError(f"model.pretrained: {path} has only half of {name}")
            if value.shape != conv[leaf].shape:
                raise ConfigError(
                    f"model.pretrained: {name}/{key} in {path} has shape {value.shape} and the "
                    f"network {conv[leaf].shape}; VGG16's weights need model.width_multiplier 1.0"
                )
            if not np.all(np.isfinite(value)):
                raise ConfigError(f"model.pretrained: {name}/{key} in {path} is not finite")
            if name == "conv1_1" and leaf == "kernel" and channels == "bgr":
                value = value[:, :, ::-1]
            conv[leaf] = np.array(value, np.float32)
        base[name] = {**base[name], "conv": conv}
        loaded.append(name)
    if not loaded:
        raise ConfigError(
            f"model.pretrained: {path} holds no layer of VGG16; expected arrays like conv1_1/w"
        )
    last = base[loaded[-1]]
    scaled = {leaf: value * np.float32(scale) for leaf, value in last["conv"].items()}
    base[loaded[-1]] = {**last, "conv": scaled}
    fresh = tuple(name for name in BASE_LAYERS if name not in loaded)
    return {**params, "base": base}, LoadReport(tuple(loaded), fresh, tuple(sorted(arrays)))


def check_exists(path: Path) -> None:
    """Raise ConfigError if there is no such file."""
    if not is_file(path):
        raise ConfigError(f"model.pretrained: there is no file {path}")


def _read(path: Path) -> dict[str, np.ndarray]:
    check_exists(path)
    try:
        if path.suffix == ".npz":
            # Never a pickle: a file of weights must not run code.
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            return load_file(path)
    except Exception as error:  # whatever a broken file makes its reader raise
        raise ConfigError(f"model.pretrained: {path} cannot be read: {error}") from None
    raise ConfigError(f"model.pretrained: {path} is neither .npz nor .safetensors")
