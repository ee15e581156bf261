"""Evaluate a checkpoint; the config lies in it.

python evaluate.py --checkpoint DIR [--out DIR] [--section.field VALUE ...]
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ssd_jax.cli import override, run_main
from ssd_jax.config import Config, ConfigError

_DESCRIPTION = """Evaluate a checkpoint.

--checkpoint DIR   a run's folder (its newest checkpoint) or one of its checkpoints/STEP
--out DIR          where metrics.json and the pictures go; default: eval/STEP in the run's folder

Below, every field of the config with its value; the ones of data and eval may be changed."""


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and evaluate."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--out", type=Path)
    own, overrides = parser.parse_known_args(arguments)
    if own.checkpoint is None:
        if {"-h", "--help"} & set(overrides):
            override(Config(), overrides, description=_DESCRIPTION)
        raise ConfigError("--checkpoint is missing; name a run's folder, e.g. runs/quickstart")

    from rich.console import Console

    from ssd_jax.data.sources import open_source
    from ssd_jax.evaluation.detect import make_detect
    from ssd_jax.evaluation.evaluate import evaluate_source
    from ssd_jax.models.restore import find_checkpoint, read_config, restore_model

    checkpoint = find_checkpoint(own.checkpoint)
    config = override(read_config(checkpoint), overrides, description=_DESCRIPTION)
    source = open_source(config.data, config.data.eval_split, config.model.classes)
    model, variables = restore_model(checkpoint, config)
    out_dir = own.out or checkpoint.parent.parent / "eval" / checkpoint.name
    console = Console(highlight=False, soft_wrap=True)
    result = evaluate_source(
        make_detect(model, config),
        variables,
        source,
        config,
        out_dir=out_dir,
        console=console,
        extra={"step": int(checkpoint.name)} if checkpoint.name.isdigit() else {},
    )
    console.print(f"mAP {result.mean_ap:.4f}; metrics and pictures are in {out_dir}", markup=False)


if __name__ == "__main__":
    raise SystemExit(run_main(main))
