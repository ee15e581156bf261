"""Evaluate a checkpoint or result files; `python evaluate.py --help` lists the arguments."""

from ssd_jax.cli.evaluate import main
from ssd_jax.cli.run import run_main

if __name__ == "__main__":
    raise SystemExit(run_main(main))
