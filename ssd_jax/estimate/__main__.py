"""python -m ssd_jax.estimate: see ssd_jax/estimate/step_cost.py."""

import sys

from ssd_jax.cli import run_main
from ssd_jax.estimate.step_cost import main

if __name__ == "__main__":
    sys.argv[0] = "python -m ssd_jax.estimate"
    raise SystemExit(run_main(main))
