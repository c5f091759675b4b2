"""The formats of rows: told apart by their keys, and each turned into a Sample.

What wins where a row would pass for several is the most telling one: a chat before prompt and completion, these before
an instruction, a question, and plain text, which is often the rendering of the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from fullft_cluster.config import Format
from fullft_cluster.errors import Problem, did_you_mean
from fullft_cluster.row_chats import ChatError, Messages, check_turns, read_messages
from fullft_cluster.row_files import json_type
from fullft_cluster.samples import Sample

CHAT_KEYS = ("messages", "conversation", "conversations")
"""Where a chat lies; the first that a row has."""

# The prompts of Stanford's alpaca (PROMPT_DICT): https://github.com/tatsu-lab/stanford_alpaca/blob/main/train.py
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)

EXAMPLES: dict[str, str] = {
    "messages": '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}',
    "sharegpt": '{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}',
    "prompt_completion": '{"prompt": "...", "completion": "..."}',
    "alpaca": '{"instruction": "...", "input": "...", "output": "..."}',
    "question_answer": '{"question": "...", "answer": "..."}',
    "text": '{"text": "..."}',
}
"""What a row of each format looks like, the most telling first."""
_KEYS: dict[str, tuple[str, ...]] = {
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "question_answer": ("question", "answer"),
    "text": ("text",),
}
"""The keys that a row of a format has to have; of chats see `_chat_of`."""
_ANY = "Write one of " + ", ".join(EXAMPLES[name] for name in ("text", "prompt_completion", "messages"))
_ANY += "; or name what the rows have: data.fields={text: KEY}."


class _Reading(NamedTuple):
    """How the rows of a source are to be read."""

    fields: Mapping[str, str]
    train_on_inputs: bool


class Reader:
    """Turns the rows of one source into samples; under `auto` the first good row tells the format of all."""

    def __init__(self, form: Format, fields: Mapping[str, str], *, train_on_inputs: bool) -> None:
        self.format: str = form
        """`auto` until a row has told it."""
        self._reading = _Reading(fields, train_on_inputs)
        self._told_by = "data.format"

    def read(self, where: str, row: Mapping[str, Any]) -> Sample | Problem:
        """Return a row as a sample, or the Problem with it."""
        fields = self._reading.fields
        absent = [theirs for ours, theirs in fields.items() if ours not in ("role", "content") and theirs not in row]
        if absent:
            what = f"row has no {absent[0]!r}, which data.fields names"
            known = [str(key)[:40] for key in row if str(key).isprintable()][:20]
            return Problem(where, what, did_you_mean(absent[0], known) if known else "The row has no keys.")
        view = {**row, **{ours: row[theirs] for ours, theirs in fields.items() if theirs in row}}
        told = tell(view)
        form = told if self.format == "auto" else self.format
        if told is None or form is None:
            return Problem(where, _no_text(row), f"Write {EXAMPLES[form]}." if form else _ANY)
        if told != form and not _has_keys(view, form):
            what = f"row is {told}, and the rows of this source are {form} ({self._told_by})"
            return Problem(where, what, f"Write {EXAMPLES[form]}, or make it a source of its own (data.sources).")
        try:
            sample = _sample(view, form, where, self._reading)
        except ChatError as error:
            return Problem(where, error.what, error.fix or f"Write {EXAMPLES[form]}.")
        if self.format == "auto":
            self.format, self._told_by = form, f"told by {where}"
        return sample


def tell(row: Mapping[str, Any]) -> str | None:
    """Return the format of a row by its keys, or None. Keys with null do not count where others tell."""
    for there in ({key for key, value in row.items() if value is not None}, row):
        chat = next((key for key in CHAT_KEYS if key in there), None)
        if chat is not None:
            return "sharegpt" if _is_sharegpt(row[chat]) else "messages"
        for name, keys in _KEYS.items():
            if all(key in there for key in keys):
                return name
    return next((name for name, keys in _KEYS.items() if any(key in row for key in keys)), None)


def _is_sharegpt(chat: Any) -> bool:
    """Return whether the first message says `from`."""
    first = chat[0] if isinstance(chat, list | tuple) and chat else None
    return isinstance(first, Mapping) and first.get("from") is not None and first.get("role") is None


def _has_keys(row: Mapping[str, Any], form: str) -> bool:
    """Return whether a row can be read in a format, whatever else it could be read as."""
    if form in _KEYS:
        return all(row.get(key) is not None for key in _KEYS[form])
    return any(row.get(key) is not None and _is_sharegpt(row[key]) == (form == "sharegpt") for key in CHAT_KEYS)


def _no_text(row: Mapping[str, Any]) -> str:
    """Say what a row has instead of a text."""
    names = [key[:40] if key.isprintable() else repr(key[:40]) for key in map(str, row)]
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"row has no text; its keys are {shown}" if names else "row has no text: it is empty"


def _sample(row: Mapping[str, Any], form: str, where: str, reading: _Reading) -> Sample:
    """Return a row of a known format as a sample. Raises ChatError, for plain rows too."""
    if form in ("messages", "sharegpt"):
        return Sample(where, form, messages=_chat(row, form, reading))
    if form == "prompt_completion":
        return _prompt_completion(row, where, reading)
    if form == "text":
        return Sample(where, form, completion=_text(row, "text"))
    if form == "question_answer":
        question, answer = _text(row, "question"), _text(row, "answer")
        # The space belongs to the answer: tokenizers join it to the word that follows.
        return Sample(where, form, f"Question: {question}\nAnswer:", f" {answer}")
    instruction, output = _text(row, "instruction"), _text(row, "output")
    given = _text(row, "input", may_be_empty=True) if row.get("input") is not None else ""
    template = ALPACA_WITH_INPUT if given else ALPACA
    return Sample(where, form, template.format_map({"instruction": instruction, "input": given}), output)


def _chat(row: Mapping[str, Any], form: str, reading: _Reading) -> Messages:
    """Return the messages of a chat row."""
    key = next((key for key in CHAT_KEYS if row.get(key) is not None), None)
    key = key or next((key for key in CHAT_KEYS if key in row), None)
    if key is None:
        raise ChatError("row has no messages")
    names = ("from", "value") if form == "sharegpt" else ("role", "content")
    names = reading.fields.get("role", names[0]), reading.fields.get("content", names[1])
    messages = read_messages(row[key], key, *names)
    check_turns(messages, key, train_on_inputs=reading.train_on_inputs)
    if row.get("tools"):
        fix = "Write what the model is to know of its tools into the system message, and take `tools` out."
        raise ChatError("row has tools (definitions of functions), which are not rendered", fix)
    return messages


def _prompt_completion(row: Mapping[str, Any], where: str, reading: _Reading) -> Sample:
    """Return a prompt and its completion: two texts, or TRL's two lists of messages, which are a chat.

    https://huggingface.co/docs/trl/dataset_formats#prompt-completion
    """
    form = "prompt_completion"
    prompt, completion = row.get("prompt"), row.get("completion")
    if not (isinstance(prompt, list | tuple) and isinstance(completion, list | tuple)):
        return Sample(where, form, _text(row, "prompt", may_be_empty=True), _text(row, "completion"))
    names = reading.fields.get("role", "role"), reading.fields.get("content", "content")
    answer = read_messages(completion, "completion", *names)
    check_turns(answer, "completion", train_on_inputs=reading.train_on_inputs)
    asked = read_messages(prompt, "prompt", *names) if prompt else ()
    return Sample(where, form, messages=(*asked, *answer), prompt_messages=len(asked))


def _text(row: Mapping[str, Any], key: str, *, may_be_empty: bool = False) -> str:
    """Return the text under a key as it is. Raises ChatError where there is none."""
    value = row.get(key)
    if value is None:
        raise ChatError(f"{key} is null" if key in row else f"row has no {key}")
    if not isinstance(value, str):
        raise ChatError(f"{key} is {json_type(value)}, not a string")
    if not may_be_empty and not value.strip():
        raise ChatError(f"{key} is empty")
    return value
