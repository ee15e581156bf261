"""What the demo's server refuses, without the demo: hosts, origins, half-sent requests, logs."""

import asyncio
import logging
import socket
import threading
import time

import pytest

from ssd_jax.guard import Guard, Hosts, OneLine, ShortTraceback, impatient

LOCAL = Hosts("127.0.0.1")
PROXY = Hosts("127.0.0.1", ["Demo.example.org"])
ANY = Hosts("0.0.0.0")
ONE = Hosts("192.0.2.7")


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
        # A tunnel has a port of its own.
        (LOCAL, "localhost:8000", "http://localhost:8000"),
        (PROXY, "demo.example.org", "https://demo.example.org"),
        # A proxy that does not hand on the Host.
        (PROXY, "127.0.0.1:7860", "https://demo.example.org"),
        (ANY, "192.0.2.1:7860", "http://192.0.2.1:7860"),
        (ANY, "localhost:7860", None),
        (ANY, socket.gethostname(), None),
        (ONE, "192.0.2.7:7860", "http://192.0.2.7:7860"),
    ],
)
def test_what_is_served(hosts, host, origin):
    assert hosts.refusal(headers(host, origin)) == ""


@pytest.mark.parametrize(
    ("hosts", "host", "origin", "message"),
    [
        (LOCAL, "evil.example", None, "the host 'evil.example' is not served; --allow-host"),
        (LOCAL, "evil.example:7860", "http://evil.example:7860", "the host"),
        (LOCAL, "127.0.0.1.evil.example", None, "the host"),
        (LOCAL, "localhost@evil.example", None, "the host"),
        (LOCAL, "192.0.2.1:7860", None, "the host"),
        (LOCAL, "", None, "the host"),
        (LOCAL, "[::1", None, "the host"),
        (LOCAL, "localhost:x", None, "the host"),
        (LOCAL, None, None, "a request names one Host"),
        (ANY, "evil.example", "http://evil.example", "the host"),
        (ONE, "192.0.2.8", None, "the host"),
        (LOCAL, "localhost:7860", "http://evil.example", "a page of 'http://evil.example' may not"),
        (LOCAL, "localhost:7860", "http://localhost:3000", "a page of"),
        (LOCAL, "localhost:7860", "http://127.0.0.1:7860", "a page of"),
        (LOCAL, "localhost:7860", "null", "a page of"),
        (LOCAL, "localhost:7860", "http://[", "a page of"),
        (LOCAL, "localhost:7860", "", "a page of"),
        (PROXY, "demo.example.org", "https://evil.example", "a page of"),
    ],
)
def test_what_is_refused(hosts, host, origin, message):
    assert hosts.refusal(headers(host, origin)).startswith(message)


def test_two_hosts_are_refused():
    assert LOCAL.refusal(headers("localhost") + headers("evil.example")) == (
        "a request names one Host"
    )


def answer(scope):
    """What a guarded app sends, and whether the app was asked."""
    asked, sent = [], []

    async def app(scope, receive, send):
        asked.append(scope["type"])

    async def send(message):
        sent.append(message)

    asyncio.run(Guard(app, LOCAL)(scope, None, send))
    return asked, sent


def test_a_refused_request_never_reaches_the_app():
    asked, sent = answer({"type": "http", "headers": headers("evil.example")})
    assert asked == []
    assert sent[0]["status"] == 403
    assert b"the host 'evil.example' is not served" in sent[1]["body"]
    asked, sent = answer({"type": "websocket", "headers": headers("evil.example")})
    assert (asked, sent[0]["type"]) == ([], "websocket.close")
    assert answer({"type": "http", "headers": headers("localhost")}) == (["http"], [])
    assert answer({"type": "lifespan"}) == (["lifespan"], [])


@pytest.fixture(params=["h11", "httptools"])
def port(request):
    """Of a server that gives up after 0.4 s without a byte."""
    uvicorn = pytest.importorskip("uvicorn")
    pytest.importorskip(request.param)

    async def app(scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        # A stream of events is slow to end, and no fault of the browser's.
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await asyncio.sleep(1.2)
        await send({"type": "http.response.body", "body": b"b"})

    config = uvicorn.Config(app, port=0, http=request.param, log_level="error", lifespan="off")
    config.load()
    config.http_protocol_class = impatient(config.http_protocol_class, idle=0.4, longest=1.5)
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
    """Bytes until the other side closes, and seconds that took."""
    start, parts = time.monotonic(), []
    connection.settimeout(10)
    try:
        while part := connection.recv(4096):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts), time.monotonic() - start


def test_half_sent_requests_are_given_up(port):
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


def test_a_request_byte_by_byte_has_an_end(port):
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


def test_errors_are_one_line_of_the_log(capfd):
    short = ShortTraceback()
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
    assert "Traceback" in error  # the rest is the module's own

    records = []
    logger = logging.getLogger("a test's")
    handler = logging.Handler()
    handler.emit = records.append
    logger.addHandler(handler)
    logger.addFilter(OneLine())
    try:
        raise ValueError("what")
    except ValueError:
        logger.exception("Exception in ASGI application\n")
    logger.warning("%s is fine", "this")
    formatted = [logging.Formatter().format(record) for record in records]
    assert formatted[0].startswith("demo: ValueError: what (test_guard.py:")
    assert [line.count("\n") for line in formatted] == [0, 0]
    assert formatted[1] == "this is fine"
