"""The choice: what is best by the user's objective among what fits, within the deadline."""

from __future__ import annotations

from fullft_cluster.errors import DoesNotFitError
from fullft_cluster.planner.refuse import high_seconds, refusal, too_slow
from fullft_cluster.planner.search import deadline_seconds, first_fit, front
from fullft_cluster.planner.task import Choice, Task


def choose(task: Task) -> Choice:
    """Return the plan's choice. Raises UsageError (contradictions, an indivisible batch) and DoesNotFitError."""
    smallest = first_fit(task)
    if smallest is None:
        raise refusal(task)
    limit = deadline_seconds(task)
    if task.wanted.objective == "fewest-gpus" and limit is None:
        return smallest
    known = [choice for choice in front(task, smallest) if limit is None or high_seconds(choice) <= limit]
    if not known:
        raise DoesNotFitError(too_slow(task, smallest, limit or 0.0))
    if task.wanted.objective == "fewest-gpus":
        return min(known, key=lambda choice: (choice.layout.gpus, choice.step.expected))
    if task.wanted.objective == "fastest":
        return min(known, key=lambda choice: choice.hours.expected)
    return min(known, key=lambda choice: choice.layout.gpus * choice.hours.expected)
