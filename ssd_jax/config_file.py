"""Config files: Python modules whose get_config() returns a Config.

The project's own are found by name, others by path.
"""

import ast
import difflib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path

from ssd_jax.config import Config, ConfigError, UserError
from ssd_jax.io import is_dir, is_file

CONFIG_MISSING = "--config is missing; name a config, e.g. quickstart, or a config file"


def find_configs() -> Mapping[str, Path]:
    """Return the project's config files by name, in alphabetical order."""
    package = Path(__file__).parent
    # Beside the package in a checkout, inside it in a wheel.
    folder = next(filter(Path.is_dir, (package / "configs", package.parent / "configs")), None)
    return {path.stem: path for path in sorted(folder.glob("*.py"))} if folder else {}


def describe_config(path: Path) -> str:
    """Return the first line of the docstring of a config file."""
    text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return text.partition("\n")[0]


def load_config(name_or_path: str | Path, *, field: str = "name_or_path") -> Config:
    """Return the Config of a config file, which may import its neighbours.

    Args:
        name_or_path: name of one of the project's configs, e.g. quickstart, or path of a file,
            e.g. configs/mine.py.
        field: name of the argument in errors.

    Raises:
        ConfigError: the file is missing, fails, or returns no Config; the message names it.
    """
    path = _find(Path(name_or_path), field)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{field}: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.absolute()))
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except UserError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (Exception, SystemExit) as error:  # whatever the user's file raises
        raise ConfigError(f"{field}: {path} fails: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    if not isinstance(config, Config):
        raise ConfigError(
            f"{field}: get_config() of {path} returns {config!r}; it must return a Config"
        )
    return config


def _find(path: Path, field: str) -> Path:
    """Return the file at a path, or else the project's config of that name."""
    if is_file(path):
        return path
    configs = find_configs()
    if str(path) in configs:
        return configs[str(path)]
    if is_dir(path):
        raise ConfigError(
            f"{field}: {path} is a folder; name a config file, e.g. configs/quickstart.py"
        )
    similar = difflib.get_close_matches(path.stem, configs, n=1)
    advice = f"perhaps you meant {similar[0]}; " if similar else ""
    if path.name == str(path) and not path.suffix:
        problem = f"unknown config {path}"
    else:
        problem = f"file not found: {path}"
    raise ConfigError(f"{field}: {problem}; {advice}train --list-configs lists the configs")
