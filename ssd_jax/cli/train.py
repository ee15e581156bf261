"""Command that trains a detector."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from tyro import conf

from ssd_jax.checkpoints.trust import with_local_cache
from ssd_jax.cli.arguments import Flag, ProcessArgs, override, parse_args
from ssd_jax.config import Config, ConfigError, UserError, from_json, to_json
from ssd_jax.config_file import CONFIG_MISSING, describe_config, find_configs, load_config
from ssd_jax.io import MAX_CONFIG, is_file, read_text


@dataclass(frozen=True, kw_only=True)
class TrainArgs(ProcessArgs):
    """Train a detector.

    Exit status: 0 done; 1 the step of --replay is still not finite; 2 invalid input, explained in
    one line; 75 stopped by SIGTERM or SIGINT and saved, continue with --resume; 76 another process
    was lost, continue with --resume. A second signal ends the run at once.
    """

    main_flag: ClassVar[str] = "--config"

    config: Path | None = None
    """Name of a config, e.g. quickstart, or path of a config file; optional with --resume and
    --replay."""
    workdir: Annotated[str | None, conf.arg(metavar="DIR")] = None
    """Folder of the run's output files; default: runs/ and the name of the config."""
    resume: Flag = False
    """Continue from the newest complete checkpoint in the workdir; start if there is none."""
    replay: Path | None = None
    """Step with a value that was not finite, from WORKDIR/nonfinite: print its losses image by
    image instead of training."""
    list_configs: Flag = False
    """List the names of the project's configs with their descriptions, and exit."""
    print_config: Flag = False
    """Print the config with the fields of the command line as JSON, and exit."""


def main(arguments: Sequence[str]) -> int:
    """Train a detector."""
    args = parse_args(TrainArgs, arguments)
    if args.list_configs:
        configs = find_configs()
        for name, path in configs.items():
            print(f"{name:<{max(map(len, configs))}}  {describe_config(path)}")
        return 0
    if args.replay:
        return _replay(args.replay, arguments)
    if args.workdir == "":
        raise ConfigError("--workdir is empty; name a folder, e.g. runs/mydata")
    config = override(_base_config(args), arguments, TrainArgs)
    if args.print_config:
        print(to_json(config), end="")
        return 0
    workdir = Path(args.workdir or Path("runs") / Path(args.config or "").stem)

    from ssd_jax.distributed import leave
    from ssd_jax.training.loop import train

    with args.join_processes():
        try:
            train(config, workdir, resume=args.resume)
        except UserError as error:
            if error.busy:
                leave(error)
            raise
    return 0


def _base_config(args: TrainArgs) -> Config:
    """Return the config of --config, or the one saved in the run that is resumed."""
    if args.config:
        return load_config(args.config, field="--config")
    if not (args.resume and args.workdir):
        raise ConfigError(CONFIG_MISSING)
    saved = Path(args.workdir) / "config.json"
    if not is_file(saved):
        raise ConfigError(
            f"--resume: no run found in {args.workdir}; name another folder, or a --config"
        )
    try:
        return with_local_cache(from_json(read_text(saved, MAX_CONFIG)))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--resume: {saved} cannot be read: {error}; name --config") from None


def _replay(file: Path, arguments: Sequence[str]) -> int:
    """Print the losses of a saved step; return 0 if they are finite now, else 1."""
    from rich.console import Console

    from ssd_jax.training.nonfinite import describe, diagnose, make_table, read_replay

    step = read_replay(file)
    step = dataclasses.replace(step, config=override(step.config, arguments, TrainArgs))
    diagnosis = diagnose(step)
    console = Console(highlight=False, soft_wrap=True)
    console.print(make_table(step, diagnosis))
    console.print(describe(step, diagnosis), markup=False)
    return 0 if diagnosis.finite else 1
