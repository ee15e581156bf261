"""Entry point of `python -m ssd_jax.export`."""

import sys

from ssd_jax.cli.export import main
from ssd_jax.cli.run import run_main

if __name__ == "__main__":
    sys.argv[0] = "python -m ssd_jax.export"
    raise SystemExit(run_main(main))
