"""Entry point of `python -m ssd_jax.export`."""

import os
import sys

from ssd_jax.cli.export import main
from ssd_jax.cli.run import run_main

if __name__ == "__main__":
    # The compilers of some runtimes write to stderr what only their makers understand.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.argv[0] = "python -m ssd_jax.export"
    raise SystemExit(run_main(main))
