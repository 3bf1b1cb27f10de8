"""A web server that serves a store: slowly, in part, or not at all."""

from __future__ import annotations

import http.server
import re
import threading
import time
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Handler(http.server.BaseHTTPRequestHandler):
    """The files of a store, served as the test wants it."""

    root = Path()
    status = HTTPStatus.OK
    ranges = True
    cut_after: int | None = None
    """The bytes of a blob after which the connection ends."""
    piece = 20_000
    """The bytes that are sent at a time."""
    seconds = 0.0
    """The time between two pieces of a blob."""
    asked: list[tuple[str, str]]

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Send a file, or a part of it."""
        span = self.headers.get("Range", "")
        self.asked.append((self.path, span))
        path = self.root / self.path.lstrip("/")
        if self.status != HTTPStatus.OK or not path.is_file():
            self.send_error(self.status if self.status != HTTPStatus.OK else HTTPStatus.NOT_FOUND)
            return
        data = path.read_bytes()
        found = re.fullmatch(r"bytes=(\d+)-", span)
        start = int(found[1]) if found and self.ranges else 0
        if start and start >= len(data):
            self.send_error(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
            return
        self.send_response(HTTPStatus.PARTIAL_CONTENT if start else HTTPStatus.OK)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        is_blob = "blobs" in self.path
        rest = data[start:][: self.cut_after if is_blob else None]
        for position in range(0, len(rest), self.piece):
            self.wfile.write(rest[position : position + self.piece])
            time.sleep(self.seconds if is_blob else 0)


@contextmanager
def served(store: Path) -> Iterator[tuple[str, type[Handler]]]:
    """Serve a store; yield its URL and the handler, whose settings a test may change."""
    kind = type("Served", (Handler,), {"root": store, "asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", kind
        server.shutdown()
