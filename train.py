"""Train a detector.

python train.py --config FILE [--workdir DIR] [--resume] [--section.field VALUE ...]
python train.py --replay FILE [--section.field VALUE ...]
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ssd_jax.checkpoints.trust import with_local_cache
from ssd_jax.cli import (
    Parser,
    add_process_flags,
    check_first_word,
    load_config,
    override,
    run_main,
)
from ssd_jax.config import Config, ConfigError, UserError, from_json
from ssd_jax.io import MAX_CONFIG, is_file, read_text

_DESCRIPTION = """Train a detector.

--config FILE   the experiment, e.g. configs/quickstart.py; with --resume it may be left out
--workdir DIR   where the run goes; default: runs/ and the config's name
--resume        continue from the newest whole checkpoint in the workdir, or start if there is none

--distributed   one of several processes, found by JAX from SLURM, Kubernetes or a TPU pod; or:
--coordinator HOST:PORT --processes P --process I
                process 0 listens there, I is this one's number
--peer-timeout SECONDS
                without a sign of life after which a process counts as lost; default 60

--replay FILE   a step that was not finite, from WORKDIR/nonfinite: its losses image by image;
                status 0 if it is finite now, 1 if not

Exit status: 0 done; 2 an error that the line above it explains; 75 stopped by SIGTERM or SIGINT and
saved, continue with --resume; 76 another process was lost, continue with --resume. A second signal
ends the run at once.

Below, every field of the config with its value."""


def main(arguments: Sequence[str]) -> int:
    """Parse the command line and train."""
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--workdir")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--replay", type=Path)
    add_process_flags(parser)
    own, overrides = parser.parse_known_args(arguments)
    check_first_word(overrides, "" if own.config or own.replay else "--config")
    if own.replay:
        return _replay(own.replay, overrides)
    if own.workdir is not None:
        if not own.workdir:
            raise ConfigError("--workdir is empty; name a folder, e.g. runs/mydata")
        own.workdir = Path(own.workdir)
    asks_help = bool({"-h", "--help"} & set(overrides))
    config = override(
        Config() if asks_help and not own.config else _base_config(own),
        overrides,
        description=_DESCRIPTION,
        flags=parser.flags,
    )
    workdir = own.workdir or Path("runs") / own.config.stem

    # JAX starts here, after everything that can be wrong with the command line.
    from ssd_jax.distributed import distributed_context, leave
    from ssd_jax.training.loop import train

    with distributed_context(own):
        try:
            train(config, workdir, resume=own.resume)
        except UserError as error:
            if error.busy:
                leave(error)
            raise
    return 0


def _base_config(own: argparse.Namespace) -> Config:
    if own.config:
        return load_config(own.config)
    if not (own.resume and own.workdir):
        raise ConfigError("--config is missing; name an experiment, e.g. configs/quickstart.py")
    saved = own.workdir / "config.json"
    if not is_file(saved):
        raise ConfigError(f"--resume: there is no run in {own.workdir}; name one, or a --config")
    try:
        return with_local_cache(from_json(read_text(saved, MAX_CONFIG)))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--resume: {saved} cannot be read: {error}; name --config") from None


def _replay(file: Path, overrides: Sequence[str]) -> int:
    import dataclasses

    from rich.console import Console

    from ssd_jax.training.nonfinite import describe, diagnose, make_table, read_replay

    step = read_replay(file)
    config = override(step.config, overrides, description=_DESCRIPTION)
    step = dataclasses.replace(step, config=config)
    diagnosis = diagnose(step)
    console = Console(highlight=False, soft_wrap=True)
    console.print(make_table(step, diagnosis))
    console.print(describe(step, diagnosis), markup=False)
    return 0 if diagnosis.finite else 1


if __name__ == "__main__":
    raise SystemExit(run_main(main))
