"""Command that serves the demo app."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from tyro import conf

from ssd_jax.cli.arguments import Args, Flag, parse_args
from ssd_jax.config import COMPILATION_CACHE_DIR, ConfigError, Range


@dataclass(frozen=True, kw_only=True)
class DemoArgs(Args):
    """Serve an app that detects objects in uploaded images.

    A folder of runs offers the newest checkpoint of each run; runs/NAME/checkpoints/* offers all
    checkpoints of one run.
    """

    checkpoint: Annotated[tuple[str, ...], conf.arg(metavar="CHECKPOINT [CHECKPOINT ...]")]
    """Runs, folders of runs, checkpoints, files of weights or published weights by name, e.g.
    runs/quickstart ssd300-vgg16-coco; see ssd-jax weights list."""
    best: Flag = False
    """Use the best checkpoint of each run instead of its newest."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    allow_host: Annotated[tuple[str, ...], conf.arg(metavar="NAME [NAME ...]")] = ()
    """Additional host names that browsers may use, e.g. that of a reverse proxy."""
    port: Annotated[int, Range(1, 65_535)] = 7860
    """Port to listen on."""
    max_upload_mb: Annotated[int, Range(1, 1_000_000)] = 20
    """Maximum size of an upload (MB)."""
    score_threshold: Annotated[float, Range(0.01, 1)] = 0.5
    """Initial score threshold."""
    compilation_cache_dir: str = COMPILATION_CACHE_DIR
    """Folder for compiled programs, unless JAX_COMPILATION_CACHE_DIR names one; empty: none."""


def main(arguments: Sequence[str]) -> None:
    """Serve the demo app until interrupted."""
    args = parse_args(DemoArgs, arguments)
    for name in args.allow_host:
        if not name or set(name) & set("/:@ "):
            raise ConfigError(
                f"--allow-host is {name!r}; must be a host name without scheme or port, "
                "e.g. demo.example.org"
            )
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
