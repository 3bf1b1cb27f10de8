"""Inputs on the cluster while steps need them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.host.hashes import describe_bytes, describe_file
from pipeline.farm.parcels import Input
from pipeline.farm.sent import Sent

if TYPE_CHECKING:
    from pathlib import Path


def test_input_stays_on_the_cluster_while_a_step_needs_it(tmp_path: Path) -> None:
    """An input is put on the cluster once for all running steps, and is gone with the last of them."""
    put: list[Path | bytes] = []

    def counted(content: Path | bytes) -> list[int]:
        put.append(content)
        return [len(put)]

    held = Sent(counted)
    (tmp_path / "graph").write_bytes(b"graph")
    graph = Input(describe_file(tmp_path / "graph", tmp_path), tmp_path / "graph")
    text = Input(describe_bytes("text", b"text"), b"text")
    with held.holding((graph, text)) as one:
        with held.holding((graph,)) as other:
            assert (one, other) == ([[1], [2]], [[1]])
        assert put == [tmp_path / "graph", b"text"]
    with held.holding((graph,)) as later:
        assert later == [[3]]
    assert held._held == {}  # noqa: SLF001 - what it is for
