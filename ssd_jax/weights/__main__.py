"""python -m ssd_jax.weights: see ssd_jax/weights/command.py."""

import sys

from ssd_jax.cli import run_main
from ssd_jax.weights.command import main

if __name__ == "__main__":
    sys.argv[0] = "python -m ssd_jax.weights"
    raise SystemExit(run_main(main))
