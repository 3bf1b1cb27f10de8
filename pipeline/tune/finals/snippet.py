"""Winner → the pipeline.yaml that rebuilds it, with what was measured in the lines above. Pure but for reading YAML."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.host.terminal import size_phrase

if TYPE_CHECKING:
    from pipeline.tune.records import Answer, Standing
    from pipeline.tune.setups import Setups


def snippet_of(setups: Setups, answer: Answer) -> str:
    """Return the text of a pipeline.yaml whose matrix is the winner of an objective alone.

    Raises:
        ConfigError: the choices do not go with the configuration.
    """
    winner = answer.standings[0]
    return setups.narrowed_text(setups.place(winner.point), winner.point.choices, comment_of(answer, winner))


def comment_of(answer: Answer, winner: Standing) -> str:
    """Return the lines above the text: what it is, and what was measured."""
    rest = f", {winner.restarts} restarts" if winner.restarts else ""
    kind = "settings of its own" if winner.point.choices else "the configuration's settings"
    lines = [
        f"Written by `doit tune`: the winner for {answer.objective}, with {kind}:",
        winner.point.subject,
        f"measured: {value_of(answer.objective, winner)}{clock_of(winner)}{rest}; drop {winner.drop:.2%}",
        "To rebuild it, put this in the place of pipeline.yaml and run `doit`.",
    ]
    return "\n".join(lines)


def value_of(objective: str, standing: Standing) -> str:
    """Return a value with its unit and its interval."""
    if objective == "memory":
        return size_phrase(standing.value)
    if objective == "throughput":
        ends = _interval(standing, f"{standing.low:,.0f} to {standing.high:,.0f}")
        streams = f", {standing.streams} streams" if standing.streams else ""
        return f"{standing.value:,.0f} images/s ({ends}), batch {standing.batch}{streams}"
    return f"{standing.value:.4g} ms ({_interval(standing, f'{standing.low:.4g} to {standing.high:.4g}')})"


def clock_of(standing: Standing) -> str:
    """Return the clock of a value, after a comma; empty for memory, and for streams, whose number is in the value."""
    return f", {standing.clock.phrase}" if standing.clock and not standing.streams else ""


def _interval(standing: Standing, ends: str) -> str:
    return f"95 %: {ends}" if standing.restarts > 1 else "one restart, no interval"


def file_of(objective: str) -> str:
    """Return the name of the file for an objective: `latency-at-batch-1.yaml`."""
    return f"{objective.replace(' ', '-')}.yaml"
