"""A proxy before a registry that fails as a test wants it: refuses, breaks off, alters, dawdles, redirects."""

from __future__ import annotations

import http.client
import http.server
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


class Asked(NamedTuple):
    """A request that arrived."""

    method: str
    path: str
    """With its query."""
    range: str
    """The range of bytes that it asks for."""
    authorization: str
    sent: int
    """Bytes of its body."""


@dataclass(frozen=True)
class Fault:
    """What happens instead of an answer, or to it."""

    status: int = 0
    """Status of an answer that the registry never gives; 0 lets the registry answer."""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut_after: int | None = None
    """Bytes of the answer's body after which the connection ends."""
    altered: Callable[[bytes], bytes] | None = None
    """Change of the answer's body."""
    seconds: float = 0.0
    """Time before each piece of the answer."""
    drops: bool = False
    """True ends the connection without an answer, after the registry has had the request."""


class Proxy:
    """The proxy's address, its requests, and the faults to come."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.asked: list[Asked] = []
        self.fault: Callable[[Asked], Fault | None] = lambda _: None
        """What to do with each request."""

    def url(self, repository: str) -> str:
        """Return the URL of a repository."""
        return f"oci+http://127.0.0.1:{self.port}/{repository}"


_PIECE = 50_000


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy
    upstream: int

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        asked = Asked(
            self.command,
            self.path,
            self.headers.get("Range", ""),
            self.headers.get("Authorization", ""),
            len(body),
        )
        self.proxy.asked.append(asked)
        fault = self.proxy.fault(asked) or Fault()
        if fault.status:
            self._send(fault.status, fault.headers, fault.body, fault)
            return
        connection = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=30)
        try:
            # With the proxy's own name as the host, so that the registry's locations lead here.
            connection.request(self.command, self.path, body or None, dict(self.headers.items()))
            answer = connection.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException):
            self.close_connection = True
            return
        finally:
            connection.close()
        if fault.drops:
            self.close_connection = True
            return
        length = answer.headers.get("Content-Length")
        headers = {**dict(answer.headers.items()), **fault.headers}
        self._send(answer.status, headers, fault.altered(data) if fault.altered else data, fault, length)

    def _send(
        self, status: int, headers: Mapping[str, str], body: bytes, fault: Fault, length: str | None = None
    ) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in {"content-length", "connection", "transfer-encoding"}:
                self.send_header(name, value)
        self.send_header("Content-Length", (length or "0") if self.command == "HEAD" else str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        rest = body[: fault.cut_after]
        for position in range(0, len(rest), _PIECE):
            time.sleep(fault.seconds)
            self.wfile.write(rest[position : position + _PIECE])
        if fault.cut_after is not None:
            self.close_connection = True

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = _answer  # noqa: N815 - the base's names


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that went away: that is what the tests do."""


@contextmanager
def before(upstream: int) -> Iterator[Proxy]:
    """Run a proxy before the registry at a port; yield it, for its faults to be set."""
    proxy = Proxy(0)
    kind = type("Handler", (_Handler,), {"proxy": proxy, "upstream": upstream})
    with _Server(("127.0.0.1", 0), kind) as server:
        proxy.port = server.server_port
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield proxy
        server.shutdown()
