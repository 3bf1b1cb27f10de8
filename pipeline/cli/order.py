"""The order of steps that could run at the same time: the longest chain first.

doit takes them as they come, from a set. Two processes then may make every small thing, and wait for the one long chain
at the end.
"""

from __future__ import annotations

from graphlib import TopologicalSorter
from typing import TYPE_CHECKING

from doit.control import TaskDispatcher

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Iterable, Mapping

    from doit.control import ExecNode, TaskControl

SECONDS = "seconds that it takes, roughly"
"""The key of a task's `meta`."""


class LongestFirst(TaskDispatcher):  # type: ignore[misc]  # doit is untyped
    """doit's dispatcher; of the tasks that are ready it takes the one with the longest chain behind it."""

    def __init__(self, control: TaskControl) -> None:
        """Create the dispatcher of a run's tasks."""
        super().__init__(control.tasks, control.targets, control.selected_tasks)
        seconds = {name: (task.meta or {}).get(SECONDS, 0.0) for name, task in control.tasks.items()}
        self._chains = chains_of(seconds, {name: task.task_dep for name, task in control.tasks.items()})

    def _get_next_node(self, ready: deque[ExecNode], tasks_to_run: list[str]) -> ExecNode | None:
        """Return the next of the tasks that are ready; None if there is none. All selected ones count from the start.

        Groups come first: they do nothing but name their members.
        """
        while tasks_to_run:
            if node := self._gen_node(None, tasks_to_run.pop()):
                ready.append(node)
        if not ready:
            return None
        first = max(ready, key=lambda node: (not node.task.actions, self._chains[node.task.name]))
        ready.remove(first)
        return first


def chains_of(seconds: Mapping[str, float], before: Mapping[str, Iterable[str]]) -> dict[str, float]:
    """Return for each task the seconds from its start to the end of the longest chain of tasks that wait for it.

    Args:
        seconds: the duration of each task, by name.
        before: the names of the tasks that each task waits for.
    """
    waiting: dict[str, float] = dict.fromkeys(before, 0.0)
    chains = {}
    for name in reversed([*TopologicalSorter(before).static_order()]):
        chains[name] = waiting[name] + seconds[name]
        for other in before[name]:
            waiting[other] = max(waiting[other], chains[name])
    return chains
