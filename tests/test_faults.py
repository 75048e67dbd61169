"""The fault proxy itself: transparent until told otherwise, and then exactly as bad as asked."""

from __future__ import annotations

import http.client
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from tests.faults import FaultProxy

BODY = os.urandom(50_000)


class _Echo(BaseHTTPRequestHandler):
    """GET answers with BODY, PUT with what it was sent; both say which host and path they were asked for."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._reply(BODY)

    def do_HEAD(self) -> None:
        self._reply(BODY)

    def do_PUT(self) -> None:
        self._reply(self.rfile.read(int(self.headers["Content-Length"])))

    def _reply(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Host", self.headers["Host"])
        self.send_header("X-Path", self.path)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def proxy() -> Iterator[FaultProxy]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Echo)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    with FaultProxy(f"http://127.0.0.1:{server.server_port}") as proxy:
        yield proxy
    server.shutdown()
    server.server_close()


_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def get(proxy: FaultProxy, path: str = "/b/k") -> bytes:
    return bytes(_direct.open(proxy.endpoint + path, timeout=30).read())


def status(proxy: FaultProxy, path: str = "/b/k") -> int:
    try:
        with _direct.open(proxy.endpoint + path, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_everything_passes_through(proxy: FaultProxy) -> None:
    connection = http.client.HTTPConnection(urlsplit(proxy.endpoint).netloc, timeout=30)
    for method, body, expected in (("GET", None, BODY), ("PUT", b"x" * 40_000, b"x" * 40_000), ("HEAD", None, b"")):
        connection.request(method, "/bucket/a%20b?x=1&y=%2F", body)
        answer = connection.getresponse()  # on one connection, which stays open
        assert answer.read() == expected
        assert answer.headers["X-Host"] == urlsplit(proxy.endpoint).netloc
        assert answer.headers["X-Path"] == "/bucket/a%20b?x=1&y=%2F"
    connection.close()
    assert [method for method, _ in proxy.requests[:3]] == ["GET", "PUT", "HEAD"]
    assert proxy.hits == 0


def test_a_share_or_a_number_of_requests_is_refused(proxy: FaultProxy) -> None:
    proxy.slow_down()
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(proxy)
    assert caught.value.code == 503
    assert b"<Code>SlowDown</Code>" in caught.value.read()
    proxy.slow_down(share=0.25)
    assert [status(proxy) for _ in range(8)].count(503) == 2
    proxy.slow_down(count=2)
    assert [status(proxy) for _ in range(4)] == [503, 503, 200, 200]
    proxy.slow_down(where=lambda method, path: method == "GET" and "tar" in path)
    assert [status(proxy, "/b/a.npy"), status(proxy, "/b/a.tar")] == [200, 503]
    assert proxy.hits == 6
    proxy.heal()
    assert get(proxy) == BODY


def test_a_connection_is_cut_in_the_middle_of_a_body(proxy: FaultProxy) -> None:
    proxy.cut(after=20_000, count=1)
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        get(proxy)
    assert get(proxy) == BODY
    proxy.cut(after=20_000)
    connection = http.client.HTTPConnection(urlsplit(proxy.endpoint).netloc, timeout=30)
    with pytest.raises((http.client.HTTPException, ConnectionError)):  # noqa: PT012 (either call may notice)
        connection.request("PUT", "/b/k", BODY)
        connection.getresponse()
    connection.close()


def test_answers_come_slowly_until_healed(proxy: FaultProxy) -> None:
    proxy.slow(bytes_per_second=500_000)
    begin = time.monotonic()
    assert get(proxy) == BODY
    assert time.monotonic() - begin > 0.08  # a lower bound: 50 kB at 500 kB/s
    proxy.slow(delay=3600)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(get(proxy)))
    reader.start()
    proxy.wait_for_hits(2)
    assert received == []
    proxy.heal()
    reader.join(30)
    assert received == [BODY]


def test_connections_are_refused_until_healed(proxy: FaultProxy) -> None:
    connection = http.client.HTTPConnection(urlsplit(proxy.endpoint).netloc, timeout=30)
    connection.request("GET", "/b/k")
    connection.getresponse().read()
    proxy.refuse()
    with pytest.raises((http.client.HTTPException, ConnectionError)):  # noqa: PT012 (either call may notice)
        connection.request("GET", "/b/k")
        connection.getresponse()
    with pytest.raises(urllib.error.URLError) as caught:
        get(proxy)
    assert isinstance(caught.value.reason, ConnectionRefusedError)
    proxy.heal()
    assert get(proxy) == BODY
