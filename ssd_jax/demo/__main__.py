"""Command line of the demo app: python -m ssd_jax.demo --checkpoint RUN_OR_CHECKPOINT [...]."""

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from ssd_jax.cli import Parser, add_cache_flag, run_main
from ssd_jax.config import ConfigError
from ssd_jax.demo import MIN_SCORE

_DESCRIPTION = """Serve an app that detects objects in uploaded images.

A folder of runs offers the newest checkpoint of each run; runs/NAME/checkpoints/* offers all
checkpoints of one run."""


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and serve the app until interrupted."""
    args = _parse(arguments)
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError("the demo app needs gradio; run pip install 'ssd_jax[demo]'")

    from ssd_jax.demo.detection import find_detectors
    from ssd_jax.demo.server import check_address, serve
    from ssd_jax.distributed import use_compilation_cache

    detectors = find_detectors(args.checkpoint, best=args.best)
    check_address(args.host, args.port)
    use_compilation_cache(args.compilation_cache_dir)
    serve(
        detectors,
        host=args.host,
        port=args.port,
        allowed_hosts=args.allow_host,
        max_upload_mb=args.max_upload_mb,
        threshold=args.score_threshold,
    )


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m ssd_jax.demo",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, nargs="+", metavar="DIR", help="runs or checkpoints to offer")
    add("--best", action="store_true", help="use a run's best checkpoint, not its newest")
    add_cache_flag(parser)
    add("--host", default="127.0.0.1", help="address to listen on; default: %(default)s")
    allow_help = "additional host names that browsers may use, e.g. that of a reverse proxy"
    add("--allow-host", nargs="+", default=(), metavar="NAME", help=allow_help)
    add("--port", type=int, default=7860, help="default: %(default)s")
    add("--max-upload-mb", type=int, default=20, metavar="N", help="default: %(default)s")
    add("--score-threshold", type=float, default=0.5, metavar="X", help="default: %(default)s")
    args = parser.parse_args(list(arguments))
    if args.checkpoint is None:
        raise ConfigError("--checkpoint is missing; name a run folder, e.g. runs/quickstart")
    if not 1 <= args.port <= 65535:
        raise ConfigError(f"--port is {args.port}; must be from 1 to 65535")
    for name in args.allow_host:
        if not name or set(name) & set("/:@ "):
            raise ConfigError(
                f"--allow-host is {name!r}; must be a host name without scheme or port, "
                "e.g. demo.example.org"
            )
    if args.max_upload_mb < 1:
        raise ConfigError(f"--max-upload-mb is {args.max_upload_mb}; must be 1 or more")
    if not MIN_SCORE <= args.score_threshold <= 1:
        raise ConfigError(
            f"--score-threshold is {args.score_threshold}; must be from {MIN_SCORE} to 1"
        )
    return args


if __name__ == "__main__":
    sys.argv[0] = "python -m ssd_jax.demo"
    raise SystemExit(run_main(main))
