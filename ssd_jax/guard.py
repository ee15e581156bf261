"""What the demo's server refuses: foreign hosts and origins, half-sent requests, long tracebacks.

Nothing here imports the server: its parts are wrapped once it is there.
"""

import ipaddress
import logging
import socket
import sys
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ssd_jax.data.errors import printable

LOCAL_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})

_IDLE = 20.0
"""Seconds without a byte after which a request that is half sent is given up."""
_LONGEST = 300.0
"""Seconds that a request may take to arrive."""
_LINE = 300
"""Characters of an error that a log gets."""


class Hosts:
    """Names under which a server may be asked for.

    A page of a stranger reaches a server of this machine by letting the stranger's own name lead
    to its address (DNS rebinding); the browser then sends that name along, and it is refused.

    Args:
        listening: the address that the server listens on. A local one is asked for by the names of
            this machine to itself, 0.0.0.0 and :: by any address and by the machine's name.
        allowed: further names, as that of a proxy.
    """

    def __init__(self, listening: str, allowed: Iterable[str] = ()) -> None:
        self._allowed = {name.lower() for name in allowed}
        self._names = {listening.lower(), *self._allowed}
        self._any_address = False
        if listening in LOCAL_HOSTS:
            self._names |= LOCAL_HOSTS
        else:
            self._names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
            self._any_address = listening in ("0.0.0.0", "::")
            if self._any_address:
                self._names |= LOCAL_HOSTS

    def refusal(self, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """What is wrong with the headers of a request; empty: nothing.

        The Origin, which browsers send with what a script asks for, is the Host's or an allowed
        name's: another page is none of those that this server gave.
        """
        values: dict[bytes, list[str]] = {b"host": [], b"origin": []}
        for name, value in headers:
            values.get(name.lower(), []).append(value.decode("latin-1"))
        if len(values[b"host"]) != 1:
            return "a request names one Host"
        (host,) = values[b"host"]
        if not self._is_known(_hostname(f"//{host}")):
            return f"the host {printable(host)[:200]!r} is not served; --allow-host adds a name"
        for origin in values[b"origin"]:
            same = _split(origin) is not None and _netloc(origin) == host.lower()
            if not same and _hostname(origin) not in self._allowed:
                return f"a page of {printable(origin)[:200]!r} may not ask here"
        return ""

    def _is_known(self, name: str) -> bool:
        if name in self._names:
            return True
        try:
            return self._any_address and bool(ipaddress.ip_address(name))
        except ValueError:
            return False


def _split(url: str) -> Any:
    """The parts of an address, or None where it is none."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  # raises where it is no number
    except ValueError:
        return None
    return parts


def _hostname(url: str) -> str:
    parts = _split(url)
    return "" if parts is None else (parts.hostname or "")


def _netloc(url: str) -> str:
    return str(_split(url).netloc).lower()


class Guard:
    """An ASGI app that hands on what is asked of one of `hosts` and refuses the rest with 403."""

    def __init__(self, app: Any, hosts: Hosts) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request, or let the app answer it."""
        refusal = self._hosts.refusal(scope["headers"]) if "headers" in scope else ""
        if not refusal:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": refusal[:100]})
        else:
            plain = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
            await send({"type": "http.response.start", "status": 403, "headers": plain})
            await send({"type": "http.response.body", "body": f"{refusal}\n".encode()})


def impatient(protocol: type[Any], *, idle: float = _IDLE, longest: float = _LONGEST) -> type[Any]:
    """A protocol of uvicorn's for HTTP that gives up requests which do not arrive.

    Args:
        protocol: uvicorn's.
        idle: seconds without a byte that a request may be half sent.
        longest: seconds that it may take in all.
    """

    class Impatient(protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._heard = time.monotonic()
            self._since: float | None = None
            self._look()

        def data_received(self, data: bytes) -> None:
            self._heard = time.monotonic()
            super().data_received(data)

        def _look(self) -> None:
            """Ask again and again until the connection is closed."""
            # Another protocol may have taken it over: that is no request any more.
            if self.transport.is_closing() or self.transport.get_protocol() is not self:
                return
            now = time.monotonic()
            if not self._waits():
                self._since, self._heard = None, now
            elif self._since is None:
                self._since = now
            if now - self._heard > idle or now - (self._since or now) > longest:
                self.transport.abort()
                return
            self.loop.call_later(min(1.0, idle / 4), self._look)

        def _waits(self) -> bool:
            """Whether bytes of a request are to come, and are taken."""
            cycle = self.cycle
            arriving = cycle is None or cycle.response_complete or cycle.more_body
            return arriving and not self.flow.read_paused

    return Impatient


def one_line(error: BaseException) -> str:
    """An error with where it was raised, as one line for a log."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    text = printable(str(error)[:_LINE])
    return f"demo: {type(error).__name__}: {text}{where}"


class ShortTraceback:
    """The module `traceback`, but that print_exc() prints one line."""

    def __getattr__(self, name: str) -> Any:
        return getattr(traceback, name)

    def print_exc(self, *_: object, **__: object) -> None:
        """Print the error that is being handled."""
        error = sys.exception()
        if error is not None:
            print(one_line(error), file=sys.stderr, flush=True)


class OneLine(logging.Filter):
    """A filter that takes the traceback from a record and leaves its last line."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True."""
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            record.msg, record.args = one_line(error), ()
            record.exc_info = record.exc_text = record.stack_info = None
        return True
