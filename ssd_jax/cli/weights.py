"""Commands that import other programs' weights and export checkpoints to them.

docs/weights.md lists the formats.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from tyro import conf

from ssd_jax.cli.arguments import Args, ConfigArgs, Flag, override, parse_args
from ssd_jax.cli.run import run_subcommand
from ssd_jax.config import ConfigError
from ssd_jax.io import exists
from ssd_jax.weights.name_maps import Layout


@dataclass(frozen=True, kw_only=True)
class ImportArgs(ConfigArgs):
    """Import a weight file as a checkpoint with its config.

    The config comes with the file; any field of it can be changed, e.g. --priors.no-clip.
    """

    subcommand: ClassVar[str] = "import"

    file: Annotated[Path, conf.Positional, conf.arg(metavar="FILE")]
    """Weights of ssd.pytorch, torchvision, Keras or Caffe: .pth, .pt, .safetensors, .npz or .h5."""
    out: Annotated[Path, conf.arg(metavar="DIR")]
    """New folder of the checkpoint."""
    layout: Literal["auto"] | Layout = "auto"
    """Names and order of the arrays; auto: detect them."""
    channels: Literal["rgb", "bgr"] | None = None
    """Channel order that the file's first convolution expects, if the file does not tell."""
    classes: Path | None = None
    """Text file with one class name a line."""


@dataclass(frozen=True, kw_only=True)
class ExportArgs(Args):
    """Export a checkpoint to the format of ssd.pytorch, torchvision or safetensors."""

    subcommand: ClassVar[str] = "export"

    checkpoint: Annotated[Path, conf.Positional, conf.arg(metavar="CHECKPOINT")]
    """Folder of a run or of one of its checkpoints."""
    best: Flag = False
    """Use the run's best checkpoint instead of its newest."""
    to: Literal["ssd.pytorch", "torchvision", "safetensors"]
    """Program that reads the file."""
    out: Annotated[Path, conf.arg(metavar="FILE")]
    """New .pth or .safetensors file."""


def main(arguments: Sequence[str]) -> int | None:
    """Import or export weights."""
    return run_subcommand({"import": import_weights, "export": export_weights}, arguments)


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

    from ssd_jax.checkpoints.reader import find_checkpoint, read_config, restore_model
    from ssd_jax.weights.exporters import export_arrays, export_notes
    from ssd_jax.weights.files import write_arrays

    if args.to == "safetensors" and args.out.suffix != ".safetensors":
        raise ConfigError(f"--out: {args.out} must end in .safetensors")
    checkpoint = find_checkpoint(args.checkpoint, best=args.best)
    config = read_config(checkpoint)
    _, variables = restore_model(checkpoint, config)
    arrays = export_arrays(config, variables, args.to)
    write_arrays(args.out, arrays.values, arrays.metadata)
    for note in export_notes(config, args.to):
        print(note)
    print(f"{args.out} is written for {args.to}; it expects RGB")
