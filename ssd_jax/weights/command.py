"""Weights from other programs, in and out: python -m ssd_jax.weights import | export.

import FILE --out DIR     ssd.pytorch's, torchvision's, Keras' or Caffe's weights as a checkpoint
export CHECKPOINT --to ssd.pytorch | torchvision | safetensors --out FILE     the way back

docs/weights.md lists what loads.
"""

import argparse
import typing
from collections.abc import Sequence
from pathlib import Path

from ssd_jax.cli import Parser, override
from ssd_jax.config import ConfigError
from ssd_jax.io import exists
from ssd_jax.weights.class_names import read_class_names
from ssd_jax.weights.name_maps import Layout

_IMPORT = """Import weights as a checkpoint, with their config.

Below, every field of the config with its value; all may be changed, e.g. --priors.no-clip."""


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m ssd_jax.weights", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser(
        "import", help="a file of weights as a checkpoint with its config", allow_abbrev=False
    )
    add.add_argument("file", type=Path, help=".pth, .pt, .safetensors, .npz or .h5")
    add.add_argument("--out", type=Path, required=True, help="folder of the checkpoint, a new one")
    add.add_argument("--layout", default="auto", choices=("auto", *typing.get_args(Layout)))
    add.add_argument(
        "--channels", choices=("rgb", "bgr"), help="order that the file's first convolution wants"
    )
    add.add_argument("--classes", type=Path, help="text file of the class names, one a line")
    add = commands.add_parser(
        "export", help="a checkpoint as another program's file", allow_abbrev=False
    )
    add.add_argument("checkpoint", type=Path, help="a run's folder or one of its checkpoints")
    add.add_argument("--best", action="store_true", help="of a run the best, not the newest")
    add.add_argument("--to", required=True, choices=("ssd.pytorch", "torchvision", "safetensors"))
    add.add_argument("--out", type=Path, required=True, help="a new .pth or .safetensors file")
    return parser


def main(arguments: Sequence[str]) -> None:
    """Run the command that `arguments` name.

    Raises UserError for whatever the user can mend; nothing is written then.
    """
    own, overrides = _parser().parse_known_args(arguments)
    if own.command == "export":
        if overrides:
            raise ConfigError(f"export knows no {overrides[0]}; see --help")
        _export(own)
    else:
        _import(own, overrides)


def _import(own: argparse.Namespace, overrides: Sequence[str]) -> None:
    # JAX starts here, after everything that can be wrong with the command line.
    from ssd_jax.checkpoints.reader import write_checkpoint
    from ssd_jax.weights.files import read_arrays
    from ssd_jax.weights.importers import import_arrays

    if exists(own.out):
        raise ConfigError(f"--out: {own.out} exists; name a new folder")
    imported = import_arrays(
        own.file,
        read_arrays(own.file),
        layout=None if own.layout == "auto" else own.layout,
        channels=own.channels,
        classes=read_class_names(own.classes, "--classes") if own.classes else (),
    )
    config = override(imported.config, overrides, description=_IMPORT)
    variables = {"params": imported.params, "batch_stats": imported.batch_stats}
    write_checkpoint(own.out, config, variables)
    print(f"{own.file}: {imported.summary}")
    print(f"the checkpoint is in {own.out}")


def _export(own: argparse.Namespace) -> None:
    from ssd_jax.checkpoints.reader import find_checkpoint, read_config, restore_model
    from ssd_jax.weights.exporters import export_arrays, export_notes
    from ssd_jax.weights.files import write_arrays

    checkpoint = find_checkpoint(own.checkpoint, best=own.best)
    config = read_config(checkpoint)
    _, variables = restore_model(checkpoint, config)
    arrays = export_arrays(config, variables, own.to)
    if own.to == "safetensors" and own.out.suffix != ".safetensors":
        raise ConfigError(f"--out: {own.out} must end in .safetensors")
    write_arrays(own.out, arrays.values, arrays.metadata)
    for note in export_notes(config, own.to):
        print(note)
    print(f"{own.out} is written for {own.to}; it wants RGB")
