"""HTTP server of the demo app."""

import contextlib
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, NoReturn

from ssd_jax.config import ConfigError
from ssd_jax.demo.detection import LazyDetector
from ssd_jax.demo.guard import (
    LOCAL_HOSTS,
    AllowedHosts,
    with_host_check,
    with_security_headers,
    with_timeouts,
)
from ssd_jax.demo.logs import shorten_tracebacks
from ssd_jax.streams import program_name

# Features of Gradio that contact other machines or expose more than the app.
_DISABLED = ("share", "inbrowser", "run_history", "enable_monitoring", "mcp_server", "pwa")


def serve(
    detectors: dict[str, LazyDetector],
    *,
    host: str,
    port: int,
    allowed_hosts: Collection[str],
    max_upload_mb: int,
    threshold: float,
) -> None:
    """Load the first detector, then serve the app until interrupted."""
    signal.signal(signal.SIGTERM, _terminate)
    next(iter(detectors.values())).load()
    with tempfile.TemporaryDirectory(prefix="ssd_jax_demo_") as folder:
        # Gradio reads these when imported. It requests its own address, which no proxy can reach.
        os.environ.update(GRADIO_TEMP_DIR=folder, GRADIO_ANALYTICS_ENABLED="False")
        os.environ.update(NO_PROXY="*", no_proxy="*")
        from ssd_jax.demo.app import UPLOAD_LIFETIME, make_app

        app = make_app(detectors, threshold=threshold, max_upload_mb=max_upload_mb)
        try:
            url = _launch(app, host, port, AllowedHosts(host, allowed_hosts), max_upload_mb)
            if host not in LOCAL_HOSTS:
                print(
                    f"{program_name()}: warning: anyone who can reach port {port} of this machine "
                    "can use the demo app: it has no login",
                    file=sys.stderr,
                )
            print(f"{url} is ready; press Ctrl-C to stop", flush=True)
            while True:
                time.sleep(60)
                delete_old_files(Path(folder), UPLOAD_LIFETIME)
        finally:
            app.close(verbose=False)


def _launch(app: Any, host: str, port: int, hosts: AllowedHosts, max_upload_mb: int) -> str:
    """Start a thread that serves the app; return its URL."""
    import gradio as gr
    from starlette.middleware import Middleware

    shorten_tracebacks()
    middleware = [Middleware(with_host_check, hosts), Middleware(with_security_headers)]
    disabled: dict[str, Any] = dict.fromkeys(_DISABLED, False)
    try:
        _, url, _ = app.queue(max_size=64, default_concurrency_limit=4).launch(
            server_name=f"[{host}]" if ":" in host else host,
            server_port=port,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=max_upload_mb << 20,
            state_session_capacity=100,  # up to 8 MB each
            footer_links=[],
            ssr_mode=False,
            app_kwargs={"middleware": middleware},
            theme=gr.themes.Default(
                primary_hue="blue",
                neutral_hue="slate",
                font=("system-ui", "sans-serif"),
                font_mono=("ui-monospace", "monospace"),
            ),
            css_paths=Path(__file__).with_name("app.css"),
            **disabled,
        )
    except OSError as error:
        raise ConfigError(f"--port: cannot listen on {host}:{port}: {error}") from None
    config = app.server.config
    # The middleware guards the app from the first request on, but Gradio answers some CORS
    # requests before its middleware runs.
    config.loaded_app = with_host_check(config.loaded_app, hosts)
    config.http_protocol_class = with_timeouts(config.http_protocol_class)
    return str(url)


def check_address(host: str, port: int) -> None:
    """Check that a server can listen on an address, before a network is loaded.

    Raises:
        ConfigError: the host cannot be resolved, or the port is in use or not permitted.
    """
    try:
        family, *_ = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        socket.create_server((host, port), family=family).close()
    except socket.gaierror as error:
        raise ConfigError(f"--host: cannot resolve {host}: {error.strerror}") from None
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise ConfigError(
            f"--port: cannot listen on {host}:{port}: {reason}; try --port {port + 1}"
        ) from None


def delete_old_files(folder: Path, max_age: float) -> None:
    """Delete all files under a folder that are older than `max_age` seconds.

    Gradio itself forgets the files of interrupted uploads.
    """
    oldest = time.time() - max_age
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # deleted by another thread
            if path.lstat().st_ctime < oldest and not path.is_dir():
                path.unlink()


def _terminate(*_: object) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)
