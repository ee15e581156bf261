"""Commands on datasets: check, show and prepare."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from tyro import conf

from ssd_jax.cli.arguments import Args, ConfigArgs, override, parse_args
from ssd_jax.cli.run import run_subcommand
from ssd_jax.config import Config, ConfigError, Range
from ssd_jax.config_file import CONFIG_MISSING, load_config


@dataclass(frozen=True, kw_only=True)
class CheckArgs(ConfigArgs):
    """Validate the annotations and images of a dataset.

    Errors would stop training; with any of them the exit status is 1. With a warning, training
    would ignore or change something. Notes are for information.
    """

    main_flag: ClassVar[str] = "--config"
    subcommand: ClassVar[str] = "check"

    config: Path | None = None
    """Name of a config, e.g. voc_folder, or path of a config file."""
    fix_report: Annotated[Path | None, conf.arg(metavar="FILE")] = None
    """JSON file for all findings; the console shows the first few of each kind."""


@dataclass(frozen=True, kw_only=True)
class ShowArgs(ConfigArgs):
    """Draw augmented training images and their matched priors.

    Draws the first images of a training run, with the seed and augmentation of the config.
    samples.jpg shows each image of the dataset beside its augmented form, matches.jpg each object
    with its positive priors. A table counts the positive priors of each feature layer.
    """

    main_flag: ClassVar[str] = "--config"
    subcommand: ClassVar[str] = "show"

    config: Path | None = None
    """Name of a config, e.g. quickstart, or path of a config file."""
    out: Annotated[Path | None, conf.arg(metavar="DIR")] = None
    """Output folder; default: runs/show/ and the config's name."""
    # A JPEG has at most 65,535 rows.
    count: Annotated[int, Range(1, 128)] = 16
    """Number of images."""


@dataclass(frozen=True, kw_only=True)
class PrepareArgs(Args):
    """Build a TFDS dataset as ArrayRecord files, from a download or from a folder.

    Building needs TensorFlow, reading does not: pip install 'ssd_jax[prepare]'.
    """

    subcommand: ClassVar[str] = "prepare"

    names: Annotated[tuple[str, ...], conf.Positional, conf.arg(metavar="NAME [NAME ...]")] = ()
    """TFDS's names of the datasets, e.g. voc/2007 voc/2012, or coco/2017."""
    root: Annotated[str, conf.arg(metavar="DATA_DIR")] = ""
    """Folder of all datasets, as data.root; default: $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    folder: Annotated[Path | None, conf.arg(name="from", metavar="FOLDER")] = None
    """Folder of a download to build from without network: a VOCdevkit, or COCO's annotations/ and
    images; voc and coco only."""


def main(arguments: Sequence[str]) -> int | None:
    """Check, show or prepare a dataset."""
    commands = {"check": check_data, "show": show_data, "prepare": prepare_data}
    return run_subcommand(commands, arguments)


def check_data(arguments: Sequence[str]) -> int:
    """Validate the annotations and images of a dataset."""
    args = parse_args(CheckArgs, arguments)
    config = _config(args.config, arguments, CheckArgs)

    from ssd_jax.cli.check_data import run

    return run(config, args.fix_report)


def show_data(arguments: Sequence[str]) -> None:
    """Draw augmented training images and their matched priors."""
    args = parse_args(ShowArgs, arguments)
    config = _config(args.config, arguments, ShowArgs)
    assert args.config is not None

    # Leave the accelerator to a training that may be running.
    import jax

    from ssd_jax.cli.preview_data import show

    jax.config.update("jax_platforms", "cpu")
    show(config, args.out or Path("runs/show") / args.config.stem, args.count)


def prepare_data(arguments: Sequence[str]) -> None:
    """Build TFDS datasets, from a download or from a folder."""
    args = parse_args(PrepareArgs, arguments)
    if not args.names:
        raise ConfigError("a name is missing; name datasets of TFDS, e.g. voc/2007 voc/2012")

    from ssd_jax.data.tfds.prepare import prepare

    for name in args.names:
        prepare(name, args.root, args.folder)


def _config(file: Path | None, arguments: Sequence[str], kind: type) -> Config:
    if file is None:
        raise ConfigError(CONFIG_MISSING)
    return override(load_config(file, field="--config"), arguments, kind)
