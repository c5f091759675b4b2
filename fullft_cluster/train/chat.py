"""Chats as text: rendered by a Jinja template, with the places of what the assistant writes.

The rendering is transformers' own, in its sandbox (https://huggingface.co/docs/transformers/chat_templating). What the
assistant writes is told by the template's `{% generation %}` blocks, or, where it has none, by rendering the chat up to
each turn: a turn is what a longer rendering adds to a shorter one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from fullft_cluster.errors import Problem, UsageError

Message = dict[str, Any]
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")  # as transformers looks for it
_ANSWER = "fullft"
"""What the assistant says in the chat that shows how a template closes a turn."""
_PROBES: tuple[tuple[str, ...], ...] = (("user",), ("system", "user"))


class Rendered(NamedTuple):
    """A chat as text."""

    text: str
    spans: tuple[tuple[int, int], ...]
    """Begin and end (characters) of what the assistant writes, the end of the turn too, white space after it not."""
    ends: bool
    """The last message is the assistant's."""


class CannotRenderError(Exception):
    """The template refuses a chat; says why."""


class ChatTemplate:
    """A chat template. Raises UsageError when it is no Jinja, or cannot render a question and its answer."""

    def __init__(self, source: str, name: str, special_tokens: dict[str, str]) -> None:
        """`name` is what an error calls it; `special_tokens` is what it knows: bos_token and the like."""
        self._source, self._name, self._special = source, name, special_tokens
        self._marks = bool(_GENERATION.search(source))
        from jinja2 import TemplateSyntaxError

        try:
            self._closing = self._probe()
        except TemplateSyntaxError as error:
            what = f"is no chat template ({error.message})"
            raise UsageError(Problem(f"{name}:{error.lineno}", what, "Correct it there.")) from None
        except CannotRenderError as error:
            fix = "Correct it there, or give another as data.chat_template: FILE."
            raise UsageError(Problem(name, f"cannot render a question and its answer: {error}", fix)) from None

    @property
    def closing(self) -> str:
        """Return what the template writes after the last word of an assistant's turn: `<|im_end|>\\n`, say."""
        return self._closing

    def _probe(self) -> str:
        problem = CannotRenderError("it leaves the answer out")
        for roles in _PROBES:
            chat = [{"role": role, "content": "Hello"} for role in roles] + [{"role": "assistant", "content": _ANSWER}]
            try:
                _, found, after = self.render(chat).rpartition(_ANSWER)
            except CannotRenderError as error:
                problem = error
                continue
            if found:
                return after
        raise problem

    def render(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        """Return a chat as text; with `prompt` what an answer would begin with, too. Raises CannotRenderError."""
        return self._render(messages, prompt=prompt, marks=False)[0]

    def _render(self, messages: Sequence[Message], *, prompt: bool, marks: bool) -> tuple[str, list[tuple[int, int]]]:
        from jinja2 import TemplateSyntaxError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, spans = render_jinja_template(
                [list(messages)], chat_template=self._source, add_generation_prompt=prompt,
                return_assistant_tokens_mask=marks, **self._special,
            )  # fmt: skip
        except TemplateSyntaxError:
            raise
        except Exception as error:  # whatever a template does: its own raise_exception, or a slip in it
            line = _template_line(error)
            where = f" ({self._name}:{line})" if line else f" ({self._name})"
            raise CannotRenderError(f"{str(error) or type(error).__name__}{where}") from None
        return texts[0], spans[0] if marks else []

    def turns(self, messages: Sequence[Message], prompt: int = 0) -> Rendered:
        """Return a chat as text, with the places of the assistant's turns behind the first `prompt` messages.

        Raises CannotRenderError for a chat that the template refuses, and UsageError when the template has no
        `{% generation %}` and changes what it wrote once more follows.
        """
        if self._marks:
            text, spans = self._render(messages, prompt=False, marks=True)
            spans = [(begin, self._closed(text, end)) for begin, end in spans]
        else:
            text, spans = self._turns_by_prefixes(messages)
        given = sum(message["role"] == "assistant" for message in messages[:prompt])
        if given and self._marks:  # a turn may have several marks, or none
            given = len(self._render(messages[:prompt], prompt=False, marks=True)[1])
        trimmed = tuple((begin, begin + len(text[begin:end].rstrip())) for begin, end in spans[given:])
        return Rendered(text, trimmed, ends=messages[-1]["role"] == "assistant")

    def _closed(self, text: str, end: int) -> int:
        """Return the end of a marked turn, with what closes it where the template has that outside of its marks."""
        closing, after = self._closing.strip(), text[end:].lstrip()
        return len(text) - len(after) + len(closing) if closing and after.startswith(closing) else end

    def _turns_by_prefixes(self, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
        text = self.render(messages)
        spans = []
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            after = text if turn + 1 == len(messages) else self.render(messages[: turn + 1])
            if not text.startswith(after):
                raise self._unstable(turn)
            spans.append((self._begin(messages[:turn], text, turn), len(after)))
        return text, spans

    def _begin(self, earlier: Sequence[Message], text: str, turn: int) -> int:
        """Return where a turn of the assistant begins: after what it is prompted with, where the text has that."""
        if not earlier:
            return 0
        prompted = self.render(earlier, prompt=True)
        if text.startswith(prompted):
            return len(prompted)
        if not text.startswith(self.render(earlier)):
            raise self._unstable(turn)
        return _common_prefix(prompted, text)

    def _unstable(self, turn: int) -> UsageError:
        what = f"renders the first messages of a chat otherwise when more follow (message {turn + 1}), so what the "
        what += "assistant wrote cannot be told"
        fix = "Mark it in the template by {% generation %}...{% endgeneration %}, or set data.train_on_inputs: true."
        return UsageError(Problem(self._name, what, fix))


def _common_prefix(one: str, other: str) -> int:
    """Return how many characters two texts begin with alike."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _template_line(error: BaseException) -> int | None:
    """Return the line of the template where an error arose: Jinja names its frames so."""
    trace, line = error.__traceback__, None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
