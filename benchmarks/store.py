"""Compare the speed of pulling a 60 MB file from an S3 server on loopback with a plain copy, s3fs and boto3.

    uv run python benchmarks/store.py

The server is moto's, in a process of its own. The copy reads and writes the same bytes on the same disk. All are
repeated in turns; the medians in MB/s and their ratios to the plain copy are printed.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import fsspec

from model_artifacts.records import FileRecord
from model_artifacts.releases.objects import ObjectStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

_BYTES = 60 * 10**6
_ROUNDS = 5


def _serve(ready: Connection) -> None:
    """Run moto's server for an hour, and send its host and port."""
    from moto.server import ThreadedMotoServer  # noqa: PLC0415 - needed in the server's process only

    with contextlib.redirect_stderr(io.StringIO()):
        server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
        server.start()
        ready.send(server.get_host_and_port())
        time.sleep(3600)


def _seconds(work: Callable[[], object]) -> float:
    """Return the duration of a call in seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Measure, and print the medians and ratios."""
    mine, theirs = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs,), daemon=True)
    server.start()
    host, port = mine.recv()
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }
    client: Any = boto3.client("s3")
    client.create_bucket(Bucket="models")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        engine = root / "model.engine"
        engine.write_bytes(os.urandom(_BYTES))
        file = FileRecord(path="model.engine", bytes=_BYTES, sha256=hashlib.sha256(engine.read_bytes()).hexdigest())
        store = ObjectStore("s3://models/store")
        push = _seconds(lambda: store.upload(f"blobs/{file.sha256}", engine, lambda _: None))

        def pull() -> None:
            store.fetch(f"blobs/{file.sha256}", file, root / "pulled.engine", lambda _: None)
            (root / "pulled.engine").unlink()

        def copy() -> None:
            shutil.copyfile(engine, root / "copied.engine")
            with (root / "copied.engine").open("rb") as copied:
                os.fsync(copied.fileno())
            (root / "copied.engine").unlink()

        def s3fs() -> None:
            fsspec.filesystem("s3").get_file(f"models/store/blobs/{file.sha256}", str(root / "bare.engine"))
            (root / "bare.engine").unlink()

        def boto() -> None:
            body = client.get_object(Bucket="models", Key=f"store/blobs/{file.sha256}")["Body"]
            with (root / "bare.engine").open("wb") as out:
                shutil.copyfileobj(body, out, 1 << 20)
            (root / "bare.engine").unlink()

        kinds = {"pull (verified, synced)": pull, "s3fs alone": s3fs, "boto3 alone": boto, "plain copy, synced": copy}
        taken: dict[str, list[float]] = {name: [] for name in kinds}
        for _ in range(_ROUNDS):
            for name, work in kinds.items():
                taken[name].append(_seconds(work))
    speeds = {name: _BYTES / 1e6 / statistics.median(values) for name, values in taken.items()}
    print(f"push of {file.bytes / 1e6:.0f} MB: {_BYTES / 1e6 / push:.0f} MB/s")
    for name, speed in speeds.items():
        print(f"{name + ':':28}{speed:7.0f} MB/s, {speed / speeds['plain copy, synced']:.2f} of a plain copy")
    server.terminate()


if __name__ == "__main__":
    main()
