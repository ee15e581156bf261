"""Commands on weights: list, download, describe, import, export and upload.

docs/weights.md lists the published weights and the formats.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from tyro import conf

from ssd_jax.cli.arguments import Args, Checkpoint, ConfigArgs, Flag, override, parse_args
from ssd_jax.cli.run import run_subcommand
from ssd_jax.config import ConfigError, shorten
from ssd_jax.io import MAX_CONFIG, exists, read_text
from ssd_jax.streams import print_error
from ssd_jax.weights.errors import WeightsError
from ssd_jax.weights.layouts import Layout
from ssd_jax.weights.registry import ENTRIES, PublishedWeights, find_entry


@dataclass(frozen=True, kw_only=True)
class ImportArgs(ConfigArgs):
    """Import a weight file as a checkpoint with its config.

    The config comes with the file; any field of it can be changed, e.g. --priors.no-clip.
    """

    subcommand: ClassVar[str] = "import"

    file: Annotated[Path, conf.Positional, conf.arg(metavar="FILE")]
    """Weights of another program, see docs/weights.md: .pth, .pt, .safetensors, .npz, .h5 or
    .caffemodel."""
    out: Annotated[Path, conf.arg(metavar="DIR")]
    """New folder of the checkpoint."""
    layout: Literal["auto"] | Layout = "auto"
    """Names and order of the arrays; auto: detect them."""
    channels: Literal["rgb", "bgr"] | None = None
    """Channel order that the file's first convolution expects, if the file does not specify it."""
    classes: Path | None = None
    """Text file with one class name a line."""


@dataclass(frozen=True, kw_only=True)
class ExportArgs(Args):
    """Export a trained network to the format of ssd.pytorch, torchvision or safetensors.

    A safetensors file holds the config too: it is a complete detector in one file.
    """

    subcommand: ClassVar[str] = "export"

    checkpoint: Annotated[Checkpoint, conf.Positional]
    best: Flag = False
    """Use the run's best checkpoint instead of its newest."""
    to: Literal["ssd.pytorch", "torchvision", "safetensors"]
    """Program that reads the file."""
    out: Annotated[Path, conf.arg(metavar="FILE")]
    """New .pth or .safetensors file."""


@dataclass(frozen=True, kw_only=True)
class PushArgs(Args):
    """Upload a detector with a model card to the Hugging Face Hub.

    The card describes its data, its metrics if it was evaluated, its licence and its use. Log in
    first: hf auth login.
    """

    subcommand: ClassVar[str] = "push"

    checkpoint: Annotated[Checkpoint, conf.Positional]
    repo: Annotated[str, conf.Positional, conf.arg(metavar="USER/REPO")]
    """Repository, which is created if it does not exist."""
    best: Flag = False
    """Use the run's best checkpoint instead of its newest."""
    license: str = ""
    """Licence of the weights, as an identifier of the Hub, e.g. apache-2.0; empty: not stated."""
    private: Flag = False
    """Make a new repository private."""


@dataclass(frozen=True, kw_only=True)
class ListArgs(Args):
    """List the published weights that can be downloaded by name."""

    subcommand: ClassVar[str] = "list"


@dataclass(frozen=True, kw_only=True)
class DownloadArgs(Args):
    """Download published weights into the cache and verify them.

    The cache is $SSD_JAX_HOME, or the platform's folder for caches. A folder or base URL in
    $SSD_JAX_WEIGHTS_MIRROR is asked first, by the name of the file.
    """

    subcommand: ClassVar[str] = "download"

    names: Annotated[tuple[str, ...], conf.Positional, conf.arg(metavar="NAME ...")] = ()
    """Names of published weights, as in ssd-jax weights list."""
    all: Flag = False
    """Download all of them."""


@dataclass(frozen=True, kw_only=True)
class InfoArgs(Args):
    """Describe published weights, or a file of weights."""

    subcommand: ClassVar[str] = "info"

    name: Annotated[str, conf.Positional, conf.arg(metavar="NAME|FILE")]
    """Name of published weights, or a file of weights."""


def main(arguments: Sequence[str]) -> int | None:
    """List, download, describe, import, export or upload weights."""
    commands = {
        "list": list_weights,
        "download": download_weights,
        "info": describe_weights,
        "import": import_weights,
        "export": export_weights,
        "push": push_weights,
    }
    return run_subcommand(commands, arguments)


def list_weights(arguments: Sequence[str]) -> None:
    """List the published weights that can be downloaded by name."""
    parse_args(ListArgs, arguments)

    from rich.console import Console
    from rich.table import Table

    from ssd_jax.io import is_file
    from ssd_jax.weights.download import cached_path

    table = Table(box=None, pad_edge=False)
    table.add_column("name", no_wrap=True)
    for column in ("classes", "score", "size"):
        table.add_column(column, justify="right")
    for column in ("licence", "cache"):
        table.add_column(column)
    for entry in ENTRIES.values():
        table.add_row(
            entry.name,
            entry.classes_text,
            f"{entry.score.value:.1f} {entry.score.metric}" if entry.score else "-",
            entry.size_text,
            entry.licence.name if entry.licence else "unknown",
            "yes" if is_file(cached_path(entry)) else "-",
        )
    Console(highlight=False).print(table)


def download_weights(arguments: Sequence[str]) -> int:
    """Download published weights into the cache and verify them."""
    args = parse_args(DownloadArgs, arguments)
    if bool(args.names) == args.all:
        raise ConfigError("name the weights to download, or use --all; see ssd-jax weights list")
    entries = [find_entry(name) for name in (ENTRIES if args.all else args.names)]

    from ssd_jax.weights.download import fetch

    status = 0
    for entry in entries:
        try:
            print(f"{entry.name}: {fetch(entry)}")
        except WeightsError as error:
            print_error(error)
            status = error.status
    return status


def describe_weights(arguments: Sequence[str]) -> None:
    """Describe published weights, or a file of weights."""
    args = parse_args(InfoArgs, arguments)

    path = Path(args.name)
    if args.name in ENTRIES or not (exists(path) or path.suffix or path.name != args.name):
        _print_entry(find_entry(args.name))
    else:
        rows, arrays = _describe_file(path, None)
        _print_rows([("file", args.name), *rows])
        print(arrays)


def _print_entry(entry: PublishedWeights) -> None:
    """Print the facts of an entry, and the contents of its file if it is in the cache."""
    from ssd_jax.weights.download import cached_path, verify

    path = cached_path(entry)
    is_cached = exists(path)
    if is_cached:
        verify(entry, path)
    print(f"{entry.name}: {entry.description}")
    _print_rows(_describe_entry(entry))
    _print_rows([("cache", f"{path} (verified)" if is_cached else "not downloaded")])
    if is_cached:
        rows, arrays = _describe_file(path, entry)
        _print_rows(rows)
        print(arrays)


def _print_rows(rows: Sequence[tuple[str, str]]) -> None:
    for name, value in rows:
        print(f"  {name:<9} {value}")


def _describe_entry(entry: PublishedWeights) -> list[tuple[str, str]]:
    size = entry.size_text if entry.size is None else f"{entry.size:,} bytes"
    about = "about " if entry.size is None and entry.rounded_size else ""
    supported = "" if entry.layout in get_args(Layout) else " (cannot be imported yet)"
    rows = [
        ("file", f"{entry.file} ({about}{size})" if size != "unknown" else entry.file),
        *(("URL", url) for url in entry.urls),
        *entry.hashes,
        ("layout", f"{entry.layout}{supported}"),
        ("channels", entry.channels),
        ("classes", entry.classes_text if entry.classes else f"none: base, {entry.dataset}"),
        ("config", entry.config or "none"),
    ]
    if not entry.hashes:
        rows.append(("hash", "unknown; that of the first download is pinned"))
    if score := entry.score:
        rows.append(("score", f"{score.value} {score.metric} on {score.dataset} ({score.source})"))
    licence = entry.licence
    rows.append(("licence", f"{licence.name} ({licence.source})" if licence else "unknown"))
    return [*rows, ("note", entry.note)] if entry.note else rows


def _describe_file(path: Path, entry: PublishedWeights | None) -> tuple[list[tuple[str, str]], str]:
    """Return the layout and the classes of a file, and a table of its arrays."""
    from ssd_jax.weights.files import read_arrays
    from ssd_jax.weights.importers import import_arrays

    try:
        file = read_arrays(path)
    except WeightsError as error:
        if entry is None:
            raise
        return [("contents", str(error))], ""
    # The output does not depend on the channel order, which a file may not specify.
    channels = entry.channels if entry else "rgb"
    try:
        imported = import_arrays(path, file, channels=channels)
    except WeightsError as error:
        rows = [("contents", str(error))]
    else:
        rows = [("contents", imported.summary.rpartition("; channels ")[0] or imported.summary)]
        if set(imported.params) != {"base"}:
            rows.append(("classes", shorten(imported.config.model.classes, 20)))
    total = sum(value.size for value in file.values.values())
    rows.append(("arrays", f"{len(file.values)}, {total:,} numbers"))
    width = max(map(len, file.values))
    table = [
        f"    {name:<{width}}  {'x'.join(map(str, value.shape)) or '1':<16} {value.dtype}"
        for name, value in file.values.items()
    ]
    return rows, "\n".join(table)


def import_weights(arguments: Sequence[str]) -> None:
    """Import a weight file as a checkpoint with its config."""
    args = parse_args(ImportArgs, arguments)

    from ssd_jax.checkpoints.reader import write_checkpoint
    from ssd_jax.weights.class_names import read_class_names
    from ssd_jax.weights.files import read_arrays
    from ssd_jax.weights.importers import import_arrays

    if exists(args.out):
        raise ConfigError(f"--out: {args.out} exists; name a new folder")
    imported = import_arrays(
        args.file,
        read_arrays(args.file),
        layout=None if args.layout == "auto" else args.layout,
        channels=args.channels,
        classes=read_class_names(args.classes, "--classes") if args.classes else (),
    )
    config = override(imported.config, arguments, ImportArgs)
    variables = {"params": imported.params, "batch_stats": imported.batch_stats}
    write_checkpoint(args.out, config, variables)
    print(f"{args.file}: {imported.summary}")
    print(f"the checkpoint is in {args.out}")


def export_weights(arguments: Sequence[str]) -> None:
    """Export a checkpoint to the format of ssd.pytorch, torchvision or safetensors."""
    args = parse_args(ExportArgs, arguments)

    from ssd_jax.weights.exporters import export_arrays, export_notes
    from ssd_jax.weights.files import write_arrays
    from ssd_jax.weights.trained import find_trained, read_trained_config, restore_trained

    if args.to == "safetensors" and args.out.suffix != ".safetensors":
        raise ConfigError(f"--out: {args.out} must end in .safetensors")
    checkpoint = find_trained(args.checkpoint, best=args.best, field="CHECKPOINT")
    config = read_trained_config(checkpoint)
    _, variables = restore_trained(checkpoint, config)
    arrays = export_arrays(config, variables, args.to)
    write_arrays(args.out, arrays.values, arrays.metadata)
    for note in export_notes(config, args.to):
        print(note)
    print(f"{args.out} is written for {args.to}; it expects RGB")


def push_weights(arguments: Sequence[str]) -> None:
    """Upload a detector with a model card to the Hugging Face Hub."""
    args = parse_args(PushArgs, arguments)

    from safetensors.numpy import save

    from ssd_jax.checkpoints.reader import checkpoint_step
    from ssd_jax.weights import hub
    from ssd_jax.weights.exporters import export_arrays
    from ssd_jax.weights.model_card import make_card
    from ssd_jax.weights.trained import find_trained, read_trained_config, restore_trained

    checkpoint = find_trained(args.checkpoint, best=args.best, field="CHECKPOINT")
    config = read_trained_config(checkpoint)
    _, variables = restore_trained(checkpoint, config)
    # The path of the data is of no use elsewhere, and may contain the user's name.
    data = dataclasses.replace(config.data, root=Path(config.data.root).name)
    config = dataclasses.replace(config, data=data)
    repo = args.repo.removeprefix(hub.PREFIX)
    card = make_card(
        repo,
        config,
        step=checkpoint_step(checkpoint),
        metrics=_read_metrics(checkpoint),
        license_id=args.license,
    )
    arrays = export_arrays(config, variables, "safetensors")
    print(hub.push(repo, save(arrays.values, arrays.metadata), card, private=args.private))


def _read_metrics(checkpoint: Path) -> dict[str, Any] | None:
    """Read the metrics of a checkpoint's evaluation in its run; None if there are none."""
    path = checkpoint.parent.parent / "eval" / checkpoint.name / "metrics.json"
    try:
        metrics = json.loads(read_text(path, MAX_CONFIG))
    except (OSError, ValueError):
        return None
    return metrics if isinstance(metrics, dict) else None
