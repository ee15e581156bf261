"""Train a detector; `python train.py --help` lists the arguments."""

from ssd_jax.cli.run import run_main
from ssd_jax.cli.train import main

if __name__ == "__main__":
    raise SystemExit(run_main(main))
