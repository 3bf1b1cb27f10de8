"""One output of an artifact beside the reference's, as a task judges it, and the verdict. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from model_artifacts.records import GateCheck, Question
from pipeline.records import Verdict
from pipeline.stages.validate.loss import judge_drop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from model_artifacts.records import Score
    from pipeline.records import Loss
    from pipeline.stages.validate.metrics import Answers

    Rows = npt.NDArray[np.float32]
    Truth = npt.NDArray[np.generic]

_SHUFFLES = 19
"""Shuffled orders of the labels. The true order beats all of them by accident in one case of 20."""
_SHUFFLED = 256
"""The most samples of these comparisons, the first ones: masks of thousands would take minutes."""
_FEW = 20
"""Fewer images may well be alike."""


class Case(NamedTuple):
    """One named output of an artifact, and everything that its task judges it by."""

    rows: Rows
    """The artifact's values (samples, values), flattened."""
    reference: Rows
    """The FP32 network's."""
    shape: tuple[int, ...]
    """The shape of one sample."""
    truth: Truth | None = None
    """The labels of the samples; None without."""
    names: Sequence[str] | None = None
    """Names of the classes or numbers; None if unknown."""
    tie: float = 0.0
    """Answers whose logits are nearer to a change than this are near-ties: rounding alone may change them."""
    margin: float = 0.01
    """The largest acceptable drop."""
    is_part: bool = False
    """True for an artifact that is never deployed, on a part of the samples."""
    require_proof: bool = False
    """True fails a loss that is not proven."""
    threshold: float = 0.5
    """The least sigmoid of a class that is an answer."""
    tolerance: tuple[float, ...] = ()
    """The largest acceptable error of each number, in its own unit; one for all, or one for each."""
    metric: Callable[[Rows, npt.NDArray[Any]], object] | None = None
    """The user's measure: outputs (images, …) and their truth → a score of each image. None for other tasks."""
    metric_name: str = ""
    """The name of that function."""
    least: float = 0.0
    """The least mean score of the reference by that function."""


class Bar(Protocol):
    """The margin that answers are judged at, and how. A `Case` has it, and so has a detector's."""

    @property
    def margin(self) -> float:
        """The largest acceptable drop."""

    @property
    def is_part(self) -> bool:
        """True for an artifact that is never deployed, on a part of the samples."""

    @property
    def require_proof(self) -> bool:
        """True fails a loss that is not proven."""


class TaskVerdict(NamedTuple):
    """The measures of a task, its checks, and its loss."""

    scores: tuple[Score, ...]
    checks: tuple[GateCheck, ...]
    loss: Loss | None


def judge_answers(case: Bar, answers: Answers, metric: str) -> tuple[GateCheck, Loss]:
    """Judge the answers lost and won at the margin: the check, named after the metric, and the loss.

    Shares of a sample count as shares of an answer. Their variance is at most that of whole answers with the same mean,
    so that Tango's interval is wide enough.

    Args:
        case: the margin.
        answers: the answers lost and won.
        metric: the name of the check.
    """
    loss = judge_drop(answers, case.margin, is_part=case.is_part)
    value = f"{loss.drop:.2%} of {loss.samples:,}, at most {loss.drop_high:.2%}: {loss.verdict.value}"
    if loss.more:
        value += f", {loss.more:,} more samples would do"
    unproven = loss.verdict is Verdict.NOT_PROVEN and (case.is_part or not case.require_proof)
    passed = loss.verdict is Verdict.PASSES or unproven
    question = Question.GOOD_ENOUGH
    return GateCheck(metric=metric, bound=f"≤ {case.margin:.2%}", value=value, passed=passed, question=question), loss


def reference_check(metric: str, bound: str, value: str, *, passed: bool) -> GateCheck:
    """Return a check of the reference."""
    question = Question.REFERENCE
    return GateCheck(metric=f"reference: {metric}", bound=bound, value=value, passed=passed, question=question)


def beats_shuffles(metric: str, score: Callable[[Truth, int], float], truth: Truth) -> tuple[GateCheck, ...]:
    """Check that the reference is better by the labels than by the same labels in 19 other orders.

    A permutation test at 5 % (R. A. Fisher, The Design of Experiments, 1935). It needs no model of chance, so that a
    network which always gives the most frequent answer gains nothing by it. Too few images are not judged.

    Args:
        metric: the name of the score.
        score: the labels of the first samples and their number → a score, of which more is better.
        truth: the labels.
    """
    count = min(len(truth), _SHUFFLED)
    if count < _FEW:
        return ()
    own = score(truth[:count], count)
    random = np.random.default_rng(0)
    best = max(score(truth[random.permutation(count)], count) for _ in range(_SHUFFLES))
    bound = f"> {best:.4g}, the best of {_SHUFFLES} shuffled orders of the labels"
    return (reference_check(metric, bound, f"{own:.4g} of {count}", passed=own > best),)
