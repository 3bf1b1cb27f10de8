"""A search in the terminal: a line for each trial as it ends, the frontier as it grows, and the answers; 80 columns."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from model_artifacts.errors import shortened
from model_artifacts.host.terminal import escaped, size_phrase
from model_artifacts.records import Clock
from pipeline.tune.finals.snippet import clock_of, value_of
from pipeline.tune.records import TrialVerdict, are_of_a_kind
from pipeline.tune.search import LATENCY

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

    from pipeline.records import LayerProfile, LayerTime
    from pipeline.tune.explain import LayerFloor
    from pipeline.tune.records import Answer, Peer, ScreenedRule, Trial, TuneRecord
    from pipeline.tune.search import Objective

COLUMNS = 80
_CELL = 9
_MOST_LAYERS = 8
_MEGA = 1e6
"""The least memory of a frontier in bytes from which it is told in MB."""


def write(stream: TextIO, *lines: str) -> None:
    """Write lines, none of which is wider than 80 columns."""
    stream.writelines(f"{escaped(shortened(line, COLUMNS))}\n" for line in lines)
    stream.flush()


def trial_lines(trial: Trial, frontier: Sequence[Trial], left: float) -> list[str]:
    """Return the lines of a trial: its name with what is left of the budget, its choices, and its values or reason."""
    name = trial.point.subject.partition("/")[2]
    clock = f"{trial.seconds:.0f} s, {max(left, 0.0):.0f} s left"
    head = f"{trial.number:3}  {shortened(name, COLUMNS - 8 - len(clock))}"
    lines = [f"{head:<{COLUMNS - 1 - len(clock)}} {clock}"]
    lines += [f"     + {choice.text}" for choice in trial.point.choices]
    if not trial.passed:
        return [*lines, *wrapped(f"{trial.verdict.value}: {trial.reason}")]
    mark = "*" if any(item.number == trial.number for item in frontier) else " "
    same = f"; the same engine as {trial.same_as}" if trial.same_as else ""
    return [*lines, f"   {mark} {_values(trial)}{same}"]


def rule_lines(screened: Sequence[ScreenedRule], promising: Sequence[str]) -> list[str]:
    """Return the rules for ranges as they were judged without a build: the graph's own, then those worth one."""
    known = {item.rule: item for item in screened}
    lines = [f"  {_judged(item)}: its own" for item in screened[:1]]
    lines += [f"  {_judged(known[rule])}{': these images keep the gate' * known[rule].kept}" for rule in promising]
    return lines if promising else [*lines, "  no other rule is nearer"]


def _judged(item: ScreenedRule) -> str:
    return f"{item.rule:<9} relative L2 {item.distance:.2e}, loss {item.loss:.2%}"


def wrapped(text: str, indent: int = 5) -> list[str]:
    """Return a text as lines of at most 80 columns, indented below the name of its trial, or by another number."""
    return textwrap.wrap(escaped(text), COLUMNS, initial_indent=" " * indent, subsequent_indent=" " * (indent + 2))


def _values(trial: Trial) -> str:
    times = [f"b{item.batch} {item.p50_ms:.4g} ms" for item in trial.screened]
    memory = [] if trial.memory_bytes is None else [size_phrase(trial.memory_bytes)]
    drop = [] if trial.drop is None else [f"drop {trial.drop:.2%}"]
    by_host = any(item.clock is Clock.HOST for item in trial.screened)
    return ", ".join((*times, *drop, *memory, *(["by the host's clock"] if by_host else [])))


def frontier_lines(frontier: Sequence[Trial], objectives: Sequence[Objective]) -> list[str]:
    """Return the frontier as a table: a row for each trial that no other beats in latency, drop and memory at once.

    Three batch sizes fit into 80 columns; the records have all.
    """
    batches = [item.batch for item in objectives if item.kind == LATENCY and item.batch][:3]
    width = COLUMNS - 5 - _CELL * (len(batches) + 2)
    clocks = {item.clock for trial in frontier for item in trial.screened}
    mark = "h" if Clock.HOST in clocks and clocks != {Clock.HOST} else ""
    memories = [trial.memory_bytes for trial in frontier if trial.memory_bytes is not None]
    unit, unit_bytes = ("MB", 1e6) if min(memories, default=_MEGA) >= _MEGA else ("kB", 1e3)
    rows = [_row("", "variant", [*(f"b{batch} ms" for batch in batches), "drop", unit], width)]
    for trial in frontier:
        times = [trial.screening(batch) for batch in batches]
        cells = [
            *(f"{item.p50_ms:.4g}{mark if item.clock is Clock.HOST else ''}" if item else "" for item in times),
            "" if trial.drop is None else f"{trial.drop:.2%}",
            "" if trial.memory_bytes is None else f"{trial.memory_bytes / unit_bytes:.1f}",
        ]
        choices = f" +{len(trial.point.choices)}" if trial.point.choices else ""
        name = trial.point.subject.rpartition("/")[2]
        rows.append(_row(str(trial.number), shortened(name, width - 5) + choices, cells, width))
    note = ["h: by the host's clock, which counts copies; all others on the GPU alone"] if mark else []
    return ["the frontier, by screening: latency, drop and memory (+1: one choice)", *rows, *note]


def _row(number: str, name: str, cells: Sequence[str], width: int) -> str:
    return f"{number:>3}  {name:<{width}}" + "".join(f"{cell:>{_CELL}}" for cell in cells)


def answer_lines(record: TuneRecord) -> list[str]:
    """Return the winner of each objective, its choices, and who ties with it."""
    lines: list[str] = []
    for answer in record.answers:
        winner = answer.standings[0]
        lines += [f"{answer.objective}:", f"  {winner.point.subject}"]
        lines += [f"    + {choice.text}" for choice in winner.point.choices]
        lines.append(f"    {value_of(answer.objective, winner)}{clock_of(winner)}")
        lines += _eager_lines(answer.eager) if answer.eager else []
        lines += [line for peer in answer.peers for line in _peer_lines(peer)]
        if answer.streams:
            rates = ", ".join(f"{item.streams}: {item.rate:,.0f}" for item in answer.streams)
            lines += wrapped(f"images/s by the number of streams: {rates}", indent=4)
        if winner.restarts == 1 and len(answer.standings) > 1:
            lines.append("    one restart tells of no tie; a larger --budget takes the others")
        if answer.tied:
            lines.append(f"    {answer.tied} of {len(answer.standings) - 1} others tie: the intervals overlap")
        lines += _other_clock_lines(answer)
        lines.append(f"    to rebuild it: {answer.snippet}")
    return lines


def _eager_lines(eager: Peer) -> list[str]:
    """Return how many times as fast as eager FP32 the winner is at least."""
    text = "not proven faster than eager FP32 by the intervals of the same rounds"
    if eager.least and eager.least > 1:
        text = f"at least {eager.least:.2f} times as fast as eager FP32 in the same rounds"
    return wrapped(f"{text}{_clocks(eager)}", indent=4)


def _other_clock_lines(answer: Answer) -> list[str]:
    """Return how many were ranked by a clock of another kind than the winner's, which tells of no tie."""
    winner, *others = answer.standings
    number = sum(not are_of_a_kind(winner.clock, item.clock) for item in others)
    by = "that of the host, which counts copies" if winner.clock is not Clock.HOST else "the GPU's, without the copies"
    text = f"{number} of {len(others)} others are ranked by another clock, {by}: no tie is told of them"
    return wrapped(text, indent=4) if number else []


def _clocks(peer: Peer) -> str:
    """Return the clock of a comparison; both, if they are two."""
    if peer.clock is peer.winner_clock:
        return f", {peer.clock.phrase}"
    return f"; the winner {peer.winner_clock.phrase}, the other {peer.clock.phrase}"


def _peer_lines(peer: Peer) -> list[str]:
    """Return how many times as fast the winner is as a peer; that the peer is faster, if it is."""
    name = peer.subject.rpartition("/")[2]
    if peer.least is None or peer.most is None:
        text = f"{peer.ratio:.2f} times as fast as {name}, after one restart"
    elif peer.least > 1:
        text = f"{peer.ratio:.2f} times as fast as {name} (at least {peer.least:.2f})"
    elif peer.most < 1:
        text = f"{name} is faster: at least {1 / peer.most:.2f} times as fast as the winner"
    else:
        text = f"not told apart from {name}: the intervals of the two overlap"
    return wrapped(f"{text}{_clocks(peer)}", indent=4)


def effect_lines(record: TuneRecord) -> list[str]:
    """Return how often each choice helped."""
    lines = ["how often each choice helped (2 % or more, screened):"] if record.effects else []
    for effect in record.effects:
        ratio = "" if effect.ratio is None else f", time ×{effect.ratio:.3f}"
        lost = f", {effect.lost} missed the gate" if effect.lost else ""
        rescued = f"{effect.rescued} passed by it alone" if effect.rescued else ""
        never = rescued or ": ".join(text for text in ("never compared", effect.note) if text)
        also = f", {rescued}" if rescued else ""
        counts = f"{effect.helped} of {effect.compared}{ratio}{also}{lost}" if effect.compared else f"{never}{lost}"
        line = f"  {shortened(effect.what, 48):<48} {counts}"
        lines += (
            [line] if len(line) <= COLUMNS else [f"  {shortened(effect.what, COLUMNS - 2)}", f"{counts:>{COLUMNS}}"]
        )
    return lines


def floor_lines(profile: LayerProfile, floors: Sequence[LayerFloor], strangers: Sequence[LayerTime]) -> list[str]:
    """Return the layers that have most time above their floors, and those in another type than was asked."""
    total = sum(item.layer.median_us for item in floors)
    least = sum(item.floor_us for item in floors)
    lines = [
        f"layers, batch {profile.batch}, timed one by one: {total:,.1f} us; their floors {least:,.1f} us",
        f"{'us':>9}{'floor':>9}{'left':>9}  {'by':<11}{'type':<6}layer",
    ]
    for item in floors[:_MOST_LAYERS]:
        kind = item.layer.precision.value if item.layer.precision else "?"
        numbers = f"{item.layer.median_us:9.1f}{item.floor_us:9.2f}{item.left_us:9.1f}"
        lines.append(f"{numbers}  {item.bound:<11}{kind:<6}{item.layer.name}")
    for layer in strangers:
        kind = layer.precision.value if layer.precision else "?"
        lines.append(f"in {kind}, not as asked: {layer.name}{f' ({layer.tactic})' if layer.tactic else ''}")
    return lines


def summary_line(record: TuneRecord) -> str:
    """Return the first line of the end: trials, time and the reason to stop."""
    why = "nothing is left to try" if record.complete else "more --budget goes on from here"
    spent = f"{record.spent_seconds:.0f} s of {record.budget_seconds:.0f} s"
    return f"{record.trials} trials, {record.passed} passed, {spent}: {why}"


def unproven_lines(trials: Sequence[Trial]) -> list[str]:
    """Return how many points could not be run here, with each reason once; none if all could."""
    skipped = [trial.reason for trial in trials if trial.verdict is TrialVerdict.SKIPPED]
    if not skipped:
        return []
    return [f"{len(skipped)} skipped:", *(line for reason in dict.fromkeys(skipped) for line in wrapped(reason))]
