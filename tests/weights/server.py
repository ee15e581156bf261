"""An HTTP server of files on loopback, with faults."""

import contextlib
import hashlib
import http.server
import re
import threading
import time

FAULTS = {}
"""Functions of (handler, data) that answer a request, by the name of the fault."""


def fault(function):
    FAULTS[function.__name__] = function
    return function


def send(handler, data, *, status=200, **headers):
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), str(value))
    handler.end_headers()
    handler.wfile.write(data)


def etag(data):
    return f'"{hashlib.md5(data).hexdigest()}"'


def send_range(handler, data, *, validator=None):
    """Answer as a good server does: with the rest of the file that was asked for."""
    wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
    condition = handler.headers.get("If-Range")
    headers = {"ETag": validator} if validator else {}
    if wanted is None or (condition and condition != validator):
        return send(handler, data, Content_Length=len(data), **headers)
    start = int(wanted[1])
    if start >= len(data):
        return send(handler, b"", status=416, Content_Length=0)
    return send(
        handler,
        data[start:],
        status=206,
        Content_Length=len(data) - start,
        Content_Range=f"bytes {start}-{len(data) - 1}/{len(data)}",
        **headers,
    )


@fault
def none(handler, data):
    send_range(handler, data, validator=etag(data))


@fault
def no_etag(handler, data):
    send_range(handler, data)


@fault
def weak_etag(handler, data):
    send_range(handler, data, validator=f"W/{etag(data)}")


@fault
def no_range(handler, data):
    send(handler, data, Content_Length=len(data))


@fault
def other_range(handler, data):
    if "Range" not in handler.headers:
        return no_range(handler, data)
    return send(handler, data[:10], status=206, Content_Range="bytes 0-9/100", Content_Length=10)


@fault
def wrong_byte(handler, data):
    send_range(handler, data[:-1] + bytes([data[-1] ^ 1]))


@fault
def cut(handler, data, validator=etag):
    """Close the connection after a half."""
    start = int(handler.headers.get("Range", "bytes=0-")[6:-1])
    rest = data[start:]
    headers = {"ETag": validator(data), "Content_Length": len(rest)}
    if start:
        headers["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
    send(handler, rest[: len(rest) // 2], status=206 if start else 200, **headers)
    handler.close_connection = True


@fault
def cut_weak_etag(handler, data):
    cut(handler, data, lambda data: f"W/{etag(data)}")


@fault
def stall(handler, data):
    """Send a half and nothing more."""
    send(handler, data[: len(data) // 2], Content_Length=len(data), ETag=etag(data))
    handler.wfile.flush()
    handler.server.released.wait(30)


@fault
def slow(handler, data):
    send(handler, b"", Content_Length=len(data))
    step = len(data) // 5 + 1
    for start in range(0, len(data), step):
        time.sleep(0.1)
        handler.wfile.write(data[start : start + step])
        handler.wfile.flush()


@fault
def not_found(handler, data):
    send(handler, b"", status=404, Content_Length=0)


@fault
def server_error(handler, data):
    send(handler, b"", status=503, Content_Length=0)


@fault
def no_content(handler, data):
    send(handler, b"", status=204)


@fault
def page(handler, data):
    text = b"<p>sign in</p>"
    send(handler, text, Content_Type="text/html; charset=utf-8", Content_Length=len(text))


@fault
def page_as_binary(handler, data):
    text = b"\n <!doctype html><html>quota exceeded</html>"
    send(handler, text, Content_Type="application/octet-stream", Content_Length=len(text))


@fault
def redirect(handler, data):
    send(handler, b"", status=302, Location="/none" + handler.path, Content_Length=0)


@fault
def redirect_loop(handler, data):
    send(handler, b"", status=302, Location=handler.path, Content_Length=0)


@fault
def redirect_to_file(handler, data):
    send(handler, b"", status=302, Location="file:///etc/hostname", Content_Length=0)


@fault
def endless(handler, data):
    """Announce no size, and send more than any limit."""
    send(handler, b"")
    with contextlib.suppress(OSError):
        for _ in range(1000):
            handler.wfile.write(bytes(1 << 16))
    handler.close_connection = True


@fault
def no_length(handler, data):
    send(handler, data)
    handler.close_connection = True


@fault
def half_without_length(handler, data):
    send(handler, data[: len(data) // 2])
    handler.close_connection = True


@fault
def chunked(handler, data):
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data)
    send(handler, body, Transfer_Encoding="chunked")


@fault
def compressed(handler, data):
    send(handler, data, Content_Encoding="gzip", Content_Length=len(data))


@fault
def nonsense_length(handler, data):
    send(handler, data, Content_Length="many")
    handler.close_connection = True


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.requests.append((self.path, dict(self.headers)))
        name, fault = self.path.lstrip("/"), self.server.fault
        if name.startswith("none/"):
            name, fault = name.removeprefix("none/"), "none"
        data = self.server.files.get(name)
        answer = not_found if data is None else FAULTS[fault]
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            answer(self, data)

    def log_message(self, *_):
        pass


class FileServer(http.server.ThreadingHTTPServer):
    """Server of `files` by name, which answers with `fault` and records `requests`."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.requests, self.fault = {}, [], "none"
        self.released = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.released.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        pass
