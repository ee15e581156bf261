"""SSD (Single Shot MultiBox Detector) in JAX and Flax.

>>> import ssd_jax
>>> ssd_jax.train("quickstart", "runs/quickstart")
>>> detector = ssd_jax.Detector.from_checkpoint("runs/quickstart")
>>> detections = detector("photo.jpg")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssd_jax.api import evaluate, train
    from ssd_jax.config import Config, UserError
    from ssd_jax.config_file import load_config
    from ssd_jax.inference.detector import Detections, Detector, load_image

__version__ = "0.1.0"

__all__ = [
    "Config",
    "Detections",
    "Detector",
    "UserError",
    "__version__",
    "evaluate",
    "load_config",
    "load_image",
    "train",
]

_MODULES = {
    "Config": "config",
    "Detections": "inference.detector",
    "Detector": "inference.detector",
    "UserError": "config",
    "evaluate": "api",
    "load_config": "config_file",
    "load_image": "inference.detector",
    "train": "api",
}
"""Modules of the names above, imported when a name is first used: JAX takes seconds."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(f"ssd_jax.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
