"""The noun Sample: one row of training data in the one shape that tokenising knows, whatever it was written as."""

from __future__ import annotations

from typing import Any, NamedTuple

from fullft_cluster.errors import Problem


class Sample(NamedTuple):
    """A chat (`messages`), or a prompt and its completion; plain text is a completion alone."""

    where: str
    """``file:line`` in a text file, ``file: row N`` (from 1) elsewhere."""
    format: str
    """What the row was written as: a value of `data.format` other than `auto`."""
    prompt: str = ""
    completion: str = ""
    messages: tuple[dict[str, Any], ...] = ()
    """Each with `role` (system, user, assistant or tool) and `content` (a string); empty where it is no chat."""
    prompt_messages: int = 0
    """So many messages at the head are a prompt: what the assistant says there is not learnt."""


class BadRow(NamedTuple):
    """A row that cannot be used, and why."""

    problem: Problem
