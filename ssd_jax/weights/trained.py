"""Trained networks: of a run, a checkpoint, a file of weights, or published ones by name."""

import difflib
import typing
from dataclasses import replace
from pathlib import Path
from typing import Any

from ssd_jax.checkpoints import reader
from ssd_jax.checkpoints.trust import with_local_fields
from ssd_jax.config import Config, ConfigError
from ssd_jax.config_file import load_config
from ssd_jax.io import exists, is_file
from ssd_jax.models.ssd import SSD, make_model, variable_shapes
from ssd_jax.weights import hub
from ssd_jax.weights.download import cached_path, fetch
from ssd_jax.weights.errors import WeightsError
from ssd_jax.weights.files import SUFFIXES, read_arrays
from ssd_jax.weights.importers import Imported, import_arrays
from ssd_jax.weights.layouts import Layout
from ssd_jax.weights.registry import ENTRIES, PublishedWeights


def find_trained(source: str | Path, *, best: bool = False, field: str = "--checkpoint") -> Path:
    """Find a trained network, and download it if `source` is the name of published weights.

    Args:
        source: a run or a checkpoint, see `ssd_jax.checkpoints.reader.find_checkpoint`; a file of
            weights; a name of the registry; or hf://USER/REPO on the Hugging Face Hub.
        best: of a run, return its best checkpoint instead of its newest.
        field: option that set the source, for error messages.

    Returns:
        The folder of a checkpoint, or a file of weights.

    Raises:
        ConfigError: nothing was found.
        WeightsError: the weights cannot be downloaded.
    """
    name, path = str(source), Path(source)
    if name.startswith(hub.PREFIX):
        return hub.pull(name, field=field)
    if not exists(path):
        if name in ENTRIES:
            return fetch(ENTRIES[name])
        if path.suffix.lower() in SUFFIXES:
            raise ConfigError(f"{field}: file not found: {path}")
        if path.name == name:
            similar = difflib.get_close_matches(name, ENTRIES, n=1)
            advice = f"perhaps you meant {similar[0]}" if similar else "see ssd-jax weights list"
            raise ConfigError(
                f"{field}: {name} is neither a file or folder nor the name of published weights; "
                f"{advice}"
            )
    if is_file(path) and path.name != reader.BEST:
        if best:
            raise ConfigError(f"--best: {path} is a file; name a run, or leave out --best")
        return path
    return reader.find_checkpoint(path, best=best, field=field)


def import_file(path: Path, *, base: Any = None) -> Imported:
    """Import a file of weights; the registry supplies what a published file does not specify.

    Args:
        path: the file.
        base: see `ssd_jax.weights.importers.import_arrays`.

    Raises:
        WeightsError: the file cannot be read or imported. The message names it.
    """
    entry = _find_entry(path)
    if entry is None:
        return import_arrays(path, read_arrays(path), base=base)
    if entry.layout not in typing.get_args(Layout):
        raise WeightsError(f"{entry.name}: {entry.note}")
    layout = typing.cast(Layout, entry.layout)
    arrays = read_arrays(path)
    return import_arrays(path, arrays, layout=layout, channels=entry.channels, base=base)


def _find_entry(path: Path) -> PublishedWeights | None:
    """Return the entry of a file in the cache; None for any other file."""
    entries = (entry for entry in ENTRIES.values() if entry.file == path.name)
    return next((entry for entry in entries if cached_path(entry) == path), None)


def read_trained_config(path: Path) -> Config:
    """Read the config of a trained network, with the local values of LOCAL_FIELDS.

    Published weights are evaluated on the data and with the metrics of the config that they fill.

    Args:
        path: result of `find_trained`.

    Raises:
        ConfigError: the config is invalid, or the file holds no complete detector.
        CheckpointError: the checkpoint is damaged.
        WeightsError: the file cannot be read or imported.
    """
    if is_file(path):
        config = _import_detector(path).config
        entry = _find_entry(path)
        if entry is not None and entry.config is not None:
            published = load_config(entry.config)
            metrics = replace(config.eval, metrics=published.eval.metrics)
            config = replace(config, data=published.data, eval=metrics)
        return with_local_fields(config)
    return reader.read_config(path)


def restore_trained(path: Path, config: Config) -> tuple[SSD, dict[str, Any]]:
    """Build the network that `config` describes and read its variables.

    Args:
        path: result of `find_trained`.
        config: that of the network, see `read_trained_config`.

    Raises:
        ConfigError: a shape differs; names the first array.
        CheckpointError: the checkpoint is damaged.
        WeightsError: the file cannot be read or imported.
    """
    if not is_file(path):
        return reader.restore_model(path, config)
    imported = _import_detector(path)
    model = make_model(config.model, config.priors)
    variables = {"params": imported.params, "batch_stats": imported.batch_stats}
    reader.check_shapes(path, variables, variable_shapes(model))
    return model, variables


def _import_detector(path: Path) -> Imported:
    imported = import_file(path)
    if set(imported.params) == {"base"}:
        raise ConfigError(
            f"{path} holds a base network, which detects nothing; train from it with "
            "model.init_from"
        )
    return imported
