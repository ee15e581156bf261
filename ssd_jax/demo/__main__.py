"""Entry point of `python -m ssd_jax.demo`."""

import sys

from ssd_jax.cli.demo import main
from ssd_jax.cli.run import run_main

if __name__ == "__main__":
    sys.argv[0] = "python -m ssd_jax.demo"
    raise SystemExit(run_main(main))
