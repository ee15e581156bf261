"""Request guard: refuses foreign hosts and origins, closes stalled requests, sets headers.

It protects any ASGI app and imports no server.
"""

import ipaddress
import socket
import time
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from ssd_jax.config import printable

LOCAL_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})

_IDLE_TIMEOUT = 20.0  # seconds without a byte of an incomplete request
_REQUEST_TIMEOUT = 300.0  # seconds for a request to arrive
_SECURITY_HEADERS = (
    # Browsers refuse to load anything from other machines.
    (
        b"content-security-policy",
        b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'",
    ),
    (b"x-content-type-options", b"nosniff"),
)


class AllowedHosts:
    """Host names under which browsers may use the server.

    A foreign website can reach a local server by pointing its own name to the server's address
    (DNS rebinding). The browser then sends that name as the Host, which is refused.

    Args:
        listening: address on which the server listens. A local address is reached by the local
            names only, 0.0.0.0 and :: by any IP address and by the machine's name.
        allowed: additional names, such as that of a reverse proxy.
    """

    def __init__(self, listening: str, allowed: Iterable[str] = ()) -> None:
        self._allowed = {name.lower() for name in allowed}
        self._names = {listening.lower(), *self._allowed}
        self._any_address = listening in ("0.0.0.0", "::")
        local = listening in LOCAL_HOSTS
        if local or self._any_address:
            self._names |= LOCAL_HOSTS
        if not local:
            self._names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    def refusal(self, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """Return the reason to refuse a request with these headers, or an empty string.

        Browsers send the Origin of the website whose script makes a request; it must be the Host
        itself or an allowed name.
        """
        values = [(name.lower(), value.decode("latin-1")) for name, value in headers]
        names = [value for name, value in values if name == b"host"]
        if len(names) != 1:
            return "a request must have exactly one Host header"
        (host,) = names
        if not self._is_allowed(_split_host(f"//{host}")[0]):
            return f"host {printable(host)[:200]!r} is not allowed; --allow-host permits a name"
        for origin in (value for name, value in values if name == b"origin"):
            hostname, netloc = _split_host(origin)
            if not (netloc and netloc == host.lower()) and hostname not in self._allowed:
                return f"origin {printable(origin)[:200]!r} is not allowed"
        return ""

    def _is_allowed(self, name: str) -> bool:
        if name in self._names:
            return True
        try:
            return self._any_address and bool(ipaddress.ip_address(name))
        except ValueError:
            return False


def _split_host(url: str) -> tuple[str, str]:
    """Return the host name and `host:port` of a URL in lower case; both empty if invalid."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises ValueError unless it is a number
    except ValueError:
        return "", ""
    return parts.hostname or "", parts.netloc.lower()


def with_host_check(app: Any, hosts: AllowedHosts) -> Any:
    """Wrap an ASGI app so that requests refused by `hosts` are answered with 403."""

    async def check_host(scope: Any, receive: Any, send: Any) -> None:
        refusal = hosts.refusal(scope["headers"]) if "headers" in scope else ""
        if not refusal:
            await app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": refusal[:100]})
        else:
            headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": f"{refusal}\n".encode()})

    return check_host


def with_security_headers(app: Any) -> Any:
    """Wrap an ASGI app so that every response has the security headers."""

    async def add_headers(scope: Any, receive: Any, send: Any) -> None:
        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_SECURITY_HEADERS]
            await send(message)

        await app(scope, receive, send_with_headers)

    return add_headers


def with_timeouts(
    protocol: type[Any], *, idle: float = _IDLE_TIMEOUT, total: float = _REQUEST_TIMEOUT
) -> type[Any]:
    """Derive a uvicorn HTTP protocol that closes connections whose request does not arrive.

    Args:
        protocol: uvicorn's h11 or httptools protocol.
        idle: seconds without a byte of an incomplete request.
        total: seconds for a whole request.
    """

    class TimeoutProtocol(protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._last_byte = time.monotonic()
            self._request_start: float | None = None
            self._check_timeouts()

        def data_received(self, data: bytes) -> None:
            self._last_byte = time.monotonic()
            super().data_received(data)

        def _check_timeouts(self) -> None:
            """Check, and schedule the next check until the connection is closed or upgraded."""
            if self.transport.is_closing() or self.transport.get_protocol() is not self:
                return
            now, cycle = time.monotonic(), self.cycle
            incomplete = cycle is None or cycle.response_complete or cycle.more_body
            if not incomplete or self.flow.read_paused:
                self._request_start, self._last_byte = None, now
            elif self._request_start is None:
                self._request_start = now
            if now - self._last_byte > idle or now - (self._request_start or now) > total:
                self.transport.abort()
                return
            self.loop.call_later(min(1.0, idle / 4), self._check_timeouts)

    return TimeoutProtocol
