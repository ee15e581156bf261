"""Config files: Python modules whose get_config() returns a Config."""

import importlib.util
import sys
from pathlib import Path

from ssd_jax.config import Config, ConfigError, UserError
from ssd_jax.io import is_dir, is_file

CONFIG_MISSING = "--config is missing; name an experiment, e.g. configs/quickstart.py"


def load_config(path: Path) -> Config:
    """Return the Config of a config file, which may import its neighbours.

    Raises:
        ConfigError: the file is missing, fails, or returns no Config; the message names it.
    """
    if is_dir(path):
        raise ConfigError(
            f"--config: {path} is a folder; name a config file, e.g. configs/quickstart.py"
        )
    if not is_file(path):
        raise ConfigError(f"--config: file not found: {path}; see configs/ for examples")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--config: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.absolute()))
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except UserError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (Exception, SystemExit) as error:  # whatever the user's file raises
        raise ConfigError(f"--config: {path} fails: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    if not isinstance(config, Config):
        raise ConfigError(
            f"--config: get_config() of {path} returns {config!r}; it must return a Config"
        )
    return config
