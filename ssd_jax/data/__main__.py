"""Entry point of `python -m ssd_jax.data`."""

import sys

from ssd_jax.cli.data import main
from ssd_jax.cli.run import run_main

if __name__ == "__main__":
    sys.argv[0] = "python -m ssd_jax.data"
    raise SystemExit(run_main(main))
