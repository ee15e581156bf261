"""Entry point of `python -m ssd_jax.weights`."""

import sys

from ssd_jax.cli.run import run_main
from ssd_jax.cli.weights import main

if __name__ == "__main__":
    sys.argv[0] = "python -m ssd_jax.weights"
    raise SystemExit(run_main(main))
