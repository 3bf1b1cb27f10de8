"""The last screen of a run: the artifacts to deploy, before the table of all artifacts."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from rich.padding import Padding
from rich.text import Text

from model_artifacts.cli.tables import ORDER, console_for, print_table
from model_artifacts.deployment.choices import may_be_deployed, reference_warning, verdict_of
from model_artifacts.host.environment import processor, read_host
from model_artifacts.records import Status

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path
    from typing import TextIO

    from rich.console import Console, RenderableType

    from model_artifacts.deployment.choices import Choice
    from model_artifacts.records import Manifest, ManifestEntry

_TO_DO = {
    Status.FAILED: "run `{doit}` again: each failed step prints its error, and the command that repeats it",
    Status.REJECTED: "see the reasons: docs/accuracy.md says how an artifact is judged, and what helps",
    Status.BUILT: "run `{doit}` on a machine with the hardware that the reasons name, to prove and time what was built",
    Status.SKIPPED: "run `{doit}` on a machine that has what the reasons name",
}
"""The advice where nothing may be deployed, by the status that needs attention first."""


class Place(NamedTuple):
    """The place of a manifest."""

    path: Path | None
    """The folder of artifacts; None for an archive, from which nothing can be loaded."""
    devices: AbstractSet[str]
    """Names of this machine's processor and GPUs."""
    doit: str = ""
    """The command that builds the artifacts, such as `doit config=other.yaml`; empty where that is unknown."""
    is_shared: bool = False
    """True if the folder has other models, too: `load` and `resolve` then want the model's name."""


def devices_here() -> frozenset[str]:
    """Return the names of this machine's processor and GPUs, as benchmarks record them."""
    return frozenset({processor(), *(gpu.name for gpu in read_host().gpus)})


def print_manifest(manifest: Manifest, place: Place, stream: TextIO) -> None:
    """Print the artifacts to deploy, then all artifacts, then the reasons of those that may not be deployed."""
    console = console_for(stream)
    if model := manifest.model:
        data = "images" if model.preprocessing else "data"
        console.print(Text(f"\n{model.name}: {model.weights_detail}; {data}: {model.images}"))
    if warning := reference_warning(manifest):
        console.print(Text(f"warning: {warning}", style="yellow"))
    _print_answer(console, manifest, place)
    console.print()
    print_table(manifest, stream)


def answer_in_short(manifest: Manifest) -> str:
    """Return the artifact with the lowest latency on each device, as one line."""
    best = [choices[0].entry for choices in verdict_of(manifest).values()]
    found = list(dict.fromkeys(_name(entry) for entry in best if entry))
    return f"to deploy for the lowest latency: {', '.join(found)}" if found else "to deploy: nothing that was timed"


def _print_answer(console: Console, manifest: Manifest, place: Place) -> None:
    ready = [entry for entry in manifest.artifacts if may_be_deployed(entry)]
    verdict = verdict_of(manifest)
    if not ready:
        _print_nothing(console, manifest, place.doit or "doit")
    elif not verdict:
        console.print(Text("\nto deploy, but not timed yet:"))
        for entry in ready:
            _indented(console, Text(_name(entry), style="green"), 2)
    for device in sorted(verdict, key=lambda name: name not in place.devices):
        here = " (this machine)" if device in place.devices else " (another machine)"
        console.print(Text(f"\nto deploy on {device}{here}:"))
        for choice, before in zip(verdict[device], (None, *verdict[device]), strict=False):
            _print_choice(console, choice, place, before)
    if verdict and not place.devices & verdict.keys():
        console.print(Text("\nnothing was timed on this machine; `model-artifacts resolve` says what suits it"))
    _print_built(console, [entry for entry in manifest.artifacts if entry.status is Status.BUILT] if ready else ())
    if ready:
        _print_commands(console, place, ready[0].model if place.is_shared else "")


def _print_commands(console: Console, place: Place, model: str) -> None:
    """Print the commands for what may be deployed, with the model's name unless that is empty."""
    if place.path:
        path = shlex.quote(str(place.path)) + (f" --model {model}" if model else "")
        console.print(Text("\nto load what suits this machine, in Python:"))
        for line in _loading(place.path, model):
            console.print(Text(f"  {line}"), soft_wrap=True)
        console.print(
            Text(f"to choose by your bounds: model-artifacts resolve {path} --max-latency-ms 5"), soft_wrap=True
        )
    if place.doit:
        console.print(Text(f"to release all that may be deployed: {place.doit} release"), soft_wrap=True)


def _loading(path: Path, model: str) -> tuple[str, str]:
    """Return the lines of Python that open what suits a machine, and show its name and all sizes that it takes."""
    named = f", model={json.dumps(model)}" if model else ""
    call = f"load({json.dumps(str(path), ensure_ascii=False)}{named})"
    return "from model_artifacts import load", f"with {call} as model: print(model.entry.id, model.entry.inputs)"


def _print_choice(console: Console, choice: Choice, place: Place, before: Choice | None) -> None:
    """Print a choice, with its file unless the choice before it is of the same."""
    entry = choice.entry
    _indented(console, Text(f"{choice.goal}: ").append(_name(entry) if entry else "none", "green" if entry else ""), 2)
    ties = f"; ties with {len(choice.ties)} more" if choice.ties else ""
    _indented(console, Text(f"{choice.why}{ties}", style="dim"), 4)
    if choice.left_out and not (before and before.left_out):
        _indented(console, Text(choice.left_out, style="dim"), 4)
    if entry and entry.file and place.path and not (before and before.entry == entry):
        _indented(console, Text(str(place.path / entry.file.path), style="dim", overflow="fold"), 4)


def _print_nothing(console: Console, manifest: Manifest, doit: str) -> None:
    """Print that nothing may be deployed, why, and the next thing to do."""
    console.print(Text(f"\nto deploy: nothing, of {len(manifest.artifacts)} artifacts", style="yellow"))
    left = [entry for entry in manifest.artifacts if not entry.backend.is_baseline] or manifest.artifacts
    counts = Counter((entry.status, entry.reason) for entry in left)
    found = sorted(counts, key=lambda key: (ORDER.index(key[0]), -counts[key]))
    for status, reason in found:
        _indented(console, Text(f"{counts[status, reason]} {status.value}{': ' if reason else ''}{reason}"), 2)
    if found and (advice := _TO_DO.get(found[0][0])):
        console.print(Text(f"what to do: {advice.format(doit=doit)}"))


def _print_built(console: Console, entries: Sequence[ManifestEntry]) -> None:
    """Print the number of artifacts of each target that were built and not run, with the reason."""
    counts = Counter((entry.target, entry.reason) for entry in entries if not entry.backend.is_baseline)
    if counts:
        console.print(Text("\nbuilt, but not proven here:"))
    for (target, reason), count in counts.items():
        _indented(console, Text(f"{count} of {target}: {reason.removeprefix('built, ')}"), 2)


def _indented(console: Console, text: RenderableType, columns: int) -> None:
    console.print(Padding(text, (0, 0, 0, columns), expand=False))


def _name(entry: ManifestEntry) -> str:
    return entry.id.split("/", 1)[1]
