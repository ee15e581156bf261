"""The demo app's request guard: hosts, origins, stalled requests and one-line error logs."""

import asyncio
import logging
import socket
import threading
import time

import pytest

from ssd_jax.demo.guard import AllowedHosts, with_host_check, with_timeouts
from ssd_jax.demo.logs import one_line_traceback, shorten_record

LOCAL = AllowedHosts("127.0.0.1")
PROXY = AllowedHosts("127.0.0.1", ["Demo.example.org"])
ANY = AllowedHosts("0.0.0.0")
ONE = AllowedHosts("192.0.2.7")


def headers(host=None, origin=None):
    pairs = [(b"Host", host), (b"origin", origin)]
    return [(name, value.encode()) for name, value in pairs if value is not None]


@pytest.mark.parametrize(
    ("hosts", "host", "origin"),
    [
        (LOCAL, "127.0.0.1:7860", None),
        (LOCAL, "localhost:7860", "http://localhost:7860"),
        (LOCAL, "LOCALHOST", "http://localhost"),
        (LOCAL, "[::1]:7860", "http://[::1]:7860"),
        # An SSH tunnel on another port.
        (LOCAL, "localhost:8000", "http://localhost:8000"),
        (PROXY, "demo.example.org", "https://demo.example.org"),
        # A proxy that replaces the Host header.
        (PROXY, "127.0.0.1:7860", "https://demo.example.org"),
        (ANY, "192.0.2.1:7860", "http://192.0.2.1:7860"),
        (ANY, "localhost:7860", None),
        (ANY, socket.gethostname(), None),
        (ONE, "192.0.2.7:7860", "http://192.0.2.7:7860"),
    ],
)
def test_allowed_hosts_and_origins_are_accepted(hosts, host, origin):
    assert hosts.refusal(headers(host, origin)) == ""


@pytest.mark.parametrize(
    ("hosts", "host", "origin", "message"),
    [
        (LOCAL, "evil.example", None, "host 'evil.example' is not allowed; --allow-host"),
        (LOCAL, "evil.example:7860", "http://evil.example:7860", "host '"),
        (LOCAL, "127.0.0.1.evil.example", None, "host '"),
        (LOCAL, "localhost@evil.example", None, "host '"),
        (LOCAL, "192.0.2.1:7860", None, "host '"),
        (LOCAL, "", None, "host '"),
        (LOCAL, "[::1", None, "host '"),
        (LOCAL, "localhost:x", None, "host '"),
        (LOCAL, None, None, "a request must have exactly one Host header"),
        (ANY, "evil.example", "http://evil.example", "host '"),
        (ONE, "192.0.2.8", None, "host '"),
        (
            LOCAL,
            "localhost:7860",
            "http://evil.example",
            "origin 'http://evil.example' is not allowed",
        ),
        (LOCAL, "localhost:7860", "http://localhost:3000", "origin"),
        (LOCAL, "localhost:7860", "http://127.0.0.1:7860", "origin"),
        (LOCAL, "localhost:7860", "null", "origin"),
        (LOCAL, "localhost:7860", "http://[", "origin"),
        (LOCAL, "localhost:7860", "", "origin"),
        (PROXY, "demo.example.org", "https://evil.example", "origin"),
    ],
)
def test_foreign_hosts_and_origins_are_refused(hosts, host, origin, message):
    assert hosts.refusal(headers(host, origin)).startswith(message)


def test_several_host_headers_are_refused():
    assert LOCAL.refusal(headers("localhost") + headers("evil.example")) == (
        "a request must have exactly one Host header"
    )


def answer(scope):
    """Return the types of requests that reach a guarded app, and the messages sent."""
    received, sent = [], []

    async def app(scope, receive, send):
        received.append(scope["type"])

    async def send(message):
        sent.append(message)

    asyncio.run(with_host_check(app, LOCAL)(scope, None, send))
    return received, sent


def test_refused_requests_do_not_reach_the_app():
    received, sent = answer({"type": "http", "headers": headers("evil.example")})
    assert received == []
    assert sent[0]["status"] == 403
    assert b"host 'evil.example' is not allowed" in sent[1]["body"]
    received, sent = answer({"type": "websocket", "headers": headers("evil.example")})
    assert (received, sent[0]["type"]) == ([], "websocket.close")
    assert answer({"type": "http", "headers": headers("localhost")}) == (["http"], [])
    assert answer({"type": "lifespan"}) == (["lifespan"], [])


@pytest.fixture(params=["h11", "httptools"])
def port(request):
    """Port of a server with an idle timeout of 0.4 s and a request timeout of 1.5 s."""
    uvicorn = pytest.importorskip("uvicorn")
    pytest.importorskip(request.param)

    async def app(scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        # The response may take longer than the timeouts.
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await asyncio.sleep(1.2)
        await send({"type": "http.response.body", "body": b"b"})

    config = uvicorn.Config(app, port=0, http=request.param, log_level="error", lifespan="off")
    config.load()
    config.http_protocol_class = with_timeouts(config.http_protocol_class, idle=0.4, total=1.5)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 10
    while not server.started:
        assert time.monotonic() < end
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(10)


def read_all(connection):
    """Return the bytes sent until the connection is closed, and the seconds until then."""
    start, parts = time.monotonic(), []
    connection.settimeout(10)
    try:
        while part := connection.recv(4096):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts), time.monotonic() - start


def test_incomplete_requests_time_out(port):
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\nConnection: close\r\n"
    for half in (b"", b"GE", head, head + b"\r\n1234"):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(half)
            content, seconds = read_all(connection)
        assert b" 200 " not in content
        assert 0.3 < seconds < 4
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head + b"\r\n123456789")
        content, _ = read_all(connection)
    assert b" 200 " in content
    assert b"b" in content


def test_slow_requests_time_out(port):
    with socket.create_connection(("127.0.0.1", port)) as connection:
        start = time.monotonic()
        connection.sendall(b"GET / HTTP/1.1\r\nX: ")
        try:
            while time.monotonic() < start + 8:
                connection.sendall(b"x")
                time.sleep(0.1)
        except OSError:  # reset, or a broken pipe
            pass
        assert 1 < time.monotonic() - start < 7


def test_errors_are_logged_as_one_line(capfd):
    short = one_line_traceback()
    try:
        raise KeyError("evil\n\x1b[31m" + "x" * 5000)
    except KeyError:
        short.print_exc()
        error = short.format_exc()
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(r"demo: KeyError: 'evil\n\x1b")
    assert line.endswith(")")
    assert "test_guard.py:" in line
    assert len(line) < 500
    assert "Traceback" in error  # the other functions are unchanged

    records = []
    logger = logging.getLogger("test")
    handler = logging.Handler()
    handler.emit = records.append
    logger.addHandler(handler)
    logger.addFilter(shorten_record)
    try:
        raise ValueError("what")
    except ValueError:
        logger.exception("Exception in ASGI application\n")
    logger.warning("%s is fine", "this")
    formatted = [logging.Formatter().format(record) for record in records]
    assert formatted[0].startswith("demo: ValueError: what (test_guard.py:")
    assert [line.count("\n") for line in formatted] == [0, 0]
    assert formatted[1] == "this is fine"
