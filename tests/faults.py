"""A loopback proxy in front of an HTTP server, S3 above all, that can be told at run time to misbehave.

Clients use `FaultProxy.endpoint` in place of the server's address. Path, query, headers and body pass through as they
are, `Host` included: signatures are made for the proxy's address and stay valid behind it.
"""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, Self
from urllib.parse import urlsplit

from workflows.stack.processes import HOST, free_ports

Where = Callable[[str, str], bool]  # (method, path with query) -> whether the fault hits this request

_BLOCK = 16 * 1024
_SLOW_DOWN = b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code><Message>Slow down.</Message></Error>'
_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "proxy-connection", "te", "upgrade"}


@dataclass(frozen=True)
class _Fault:
    """One misbehavior; it hits `share` of the requests that match, evenly spread, `count` of them at most."""

    kind: Literal["slow_down", "cut", "slow"]
    share: float = 1.0
    count: int | None = None
    where: Where | None = None
    after: int = 0  # body bytes before a cut
    delay: float = 0.0  # seconds before an answer
    bytes_per_second: float | None = None


class FaultProxy:
    """Passes everything through until told otherwise; a context manager.

    Attributes:
        endpoint: the address for clients. requests: (method, path) of all requests so far.
        hits: requests that a fault has hit, refused connections not counted.
    """

    def __init__(self, target: str) -> None:
        place = urlsplit(target)
        self._target = (str(place.hostname), place.port or 80)
        self._port = free_ports(1)[0]  # below the ports of outgoing connections: still free after `refuse`
        self.endpoint = f"http://{HOST}:{self._port}"
        self.requests: list[tuple[str, str]] = []
        self.hits = 0
        self._changed = threading.Condition()
        self._healed = threading.Event()
        self._fault: _Fault | None = None
        self._matched = self._fault_hits = 0
        self._server: _Server | None = None

    def __enter__(self) -> Self:
        self._listen()
        return self

    def __exit__(self, *_: object) -> None:
        self._healed.set()
        self._deafen()

    # ------------------------------------------------------------ what a test says

    def slow_down(self, share: float = 1.0, count: int | None = None, where: Where | None = None) -> None:
        """Answer 503 SlowDown instead of asking the server."""
        self._set(_Fault("slow_down", share, count, where))

    def cut(self, after: int = 1000, share: float = 1.0, count: int | None = None, where: Where | None = None) -> None:
        """Reset the connection `after` bytes into the body: of an upload, else of the answer."""
        self._set(_Fault("cut", share, count, where, after))

    def slow(self, delay: float = 0.0, bytes_per_second: float | None = None, where: Where | None = None) -> None:
        """Wait `delay` seconds before every answer and send bodies at a limited rate."""
        self._set(_Fault("slow", where=where, delay=delay, bytes_per_second=bytes_per_second))

    def refuse(self) -> None:
        """Reset all connections and refuse new ones."""
        self._deafen()

    def heal(self) -> None:
        """Pass everything through again; whatever is being delayed goes on at once."""
        with self._changed:
            self._fault = None
            self._healed.set()
        if self._server is None:
            self._listen()

    def wait_for_hits(self, hits: int, timeout: float = 60.0) -> None:
        """Until faults have hit that many requests in all."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.hits >= hits, timeout):
                raise TimeoutError(f"{self.hits} of {hits} requests were hit within {timeout:.0f} s")

    # ------------------------------------------------------------ what a handler asks

    def fault_for(self, method: str, path: str) -> _Fault | None:
        """The fault that hits this request, which is noted."""
        with self._changed:
            self.requests.append((method, path))
            fault = self._fault
            if fault is None or (fault.where is not None and not fault.where(method, path)):
                return None
            self._matched += 1
            chosen = int(self._matched * fault.share) > int((self._matched - 1) * fault.share)
            if not chosen or (fault.count is not None and self._fault_hits >= fault.count):
                return None
            self._fault_hits += 1
            self.hits += 1
            self._changed.notify_all()
            return fault

    def pause(self, seconds: float) -> None:
        """Wait, but not beyond `heal`."""
        self._healed.wait(seconds)

    def upstream(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(*self._target, timeout=60)

    def _set(self, fault: _Fault) -> None:
        with self._changed:
            self._fault, self._matched, self._fault_hits = fault, 0, 0
            self._healed.clear()

    def _listen(self) -> None:
        self._server = _Server(self, self._port)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def _deafen(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
            server.reset_connections()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, proxy: FaultProxy, port: int) -> None:
        self.proxy = proxy
        self._open: set[socket.socket] = set()
        super().__init__((HOST, port), _Handler)

    def process_request(self, request: object, client_address: object) -> None:
        assert isinstance(request, socket.socket)
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: object) -> None:
        self._open.discard(request)
        super().shutdown_request(request)  # type: ignore[arg-type]

    def handle_error(self, request: object, client_address: object) -> None:
        """Broken connections are the point here."""

    def reset_connections(self) -> None:
        for connection in list(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # gone by itself


class _CutError(Exception):
    """The body has reached the byte at which the connection ends."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def __getattr__(self, name: str) -> Callable[[], None]:
        if name.startswith("do_"):  # every method is served alike
            return self._serve
        raise AttributeError(name)

    def log_message(self, *_: object) -> None:
        """The test's output stays its own."""

    def _serve(self) -> None:
        fault = self.server.proxy.fault_for(self.command, self.path)
        try:
            if fault is not None and fault.kind == "slow_down":
                self._refuse_politely()
            else:
                self._forward(fault)
        except _CutError:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
        except (OSError, http.client.HTTPException):  # either side went away
            self.close_connection = True

    def _refuse_politely(self) -> None:
        for _ in self._request_body():
            pass
        self.send_response(503)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(_SLOW_DOWN)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(_SLOW_DOWN)

    def _forward(self, fault: _Fault | None) -> None:
        upstream = self.server.proxy.upstream()
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _HOP:
                    upstream.putheader(name, value)
            chunked = "chunked" in self.headers.get("Transfer-Encoding", "")
            if chunked:
                upstream.putheader("Transfer-Encoding", "chunked")
            upstream.endheaders()
            upload = self._request_body()
            for block in self._limited(upload, fault) if self.command in ("PUT", "POST") else upload:
                upstream.send(b"%x\r\n%b\r\n" % (len(block), block) if chunked else block)
            if chunked:
                upstream.send(b"0\r\n\r\n")
            answer = upstream.getresponse()
            if fault is not None and fault.delay:
                self.server.proxy.pause(fault.delay)
            self._answer(answer, fault)
        finally:
            upstream.close()

    def _answer(self, answer: http.client.HTTPResponse, fault: _Fault | None) -> None:
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP:
                self.send_header(name, value)
        length = answer.getheader("Content-Length")
        empty = self.command == "HEAD" or answer.status in (204, 304)
        chunked = length is None and not empty
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if empty:
            return
        for block in self._limited(iter(lambda: answer.read(_BLOCK), b""), fault):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(block), block) if chunked else block)
        if chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _limited(self, blocks: Iterator[bytes], fault: _Fault | None) -> Iterator[bytes]:
        """The blocks of a body, slowed down or cut."""
        sent = 0
        for block in blocks:
            if fault is not None and fault.kind == "cut" and sent + len(block) > fault.after:
                yield block[: fault.after - sent]
                self.wfile.flush()
                time.sleep(0.01)  # let the bytes before the reset arrive
                raise _CutError
            yield block
            sent += len(block)
            if fault is not None and fault.bytes_per_second:
                self.server.proxy.pause(len(block) / fault.bytes_per_second)

    def _request_body(self) -> Iterator[bytes]:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():  # trailers
                pass
            return
        left = int(self.headers.get("Content-Length", 0))
        while left:
            block = self.rfile.read(min(left, _BLOCK))
            if not block:
                raise ConnectionError("the client went away in the middle of its body")
            left -= len(block)
            yield block
