"""Detect objects in images and videos; `python predict.py --help` lists the arguments."""

from ssd_jax.cli.predict import main
from ssd_jax.cli.run import run_main

if __name__ == "__main__":
    raise SystemExit(run_main(main))
