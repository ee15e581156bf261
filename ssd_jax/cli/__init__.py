"""Command-line interface: one module a command, built by tyro from dataclasses.

Modules of commands import JAX inside their functions, so that --help and errors in the arguments
come at once.
"""

from ssd_jax.cli.arguments import override
from ssd_jax.cli.config_file import load_config
from ssd_jax.cli.run import run_main, version_line

__all__ = [
    "load_config",
    "override",
    "run_main",
    "version_line",
]
