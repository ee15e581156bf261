"""Entry point of `python -m ssd_jax`."""

import sys

from ssd_jax.cli.main import run

if __name__ == "__main__":
    sys.argv[0] = "python -m ssd_jax"
    raise SystemExit(run())
