"""Samples into tokens, with a bit for each that says whether it is learnt. Runs in processes that import no torch.

Which tokens are supervised is told by their places in the text, never by their ids: EOS is learnt where a text ends,
although many tokenizers pad with the same token.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.plan import Frozen
from fullft_cluster.row_sources import uniform
from fullft_cluster.samples import Sample
from fullft_cluster.train.chat import CannotRenderError, ChatTemplate, Rendered
from fullft_cluster.train.packing import Bools, Documents

Spans = list[tuple[int, int]]


class EncoderSettings(Frozen, frozen=True, kw_only=True):
    """All that decides which tokens a sample becomes; plain data, so that another process can be told."""

    tokenizer: str
    """tokenizer.json."""
    bos_id: int | None
    eos_id: int
    special_tokens: dict[str, str]
    """What a chat template knows: bos_token and the like."""
    chat_template: str | None
    chat_template_name: str
    """What an error calls it: its file, or the tokenizer's directory."""
    vocab_size: int
    """The model's: ids lie below it."""
    train_on_inputs: bool = False
    validation_fraction: float = 0.0


class Encoded(NamedTuple):
    """Samples as tokens."""

    documents: Documents
    """One a sample, those that could not be rendered left out."""
    held_out: Bools
    """Which of them are for validation."""
    kept: list[Sample]
    """The samples that the documents were made of."""
    problems: list[Problem]
    """Of those that could not be rendered."""


class _Text(NamedTuple):
    """A sample as text."""

    text: str
    spans: Spans | None
    """Characters that are learnt; None for all of them."""
    chat: Rendered | None


class Encoder:
    """Turns samples into tokens. Raises UsageError for a template or a tokenizer that does not fit."""

    def __init__(self, settings: EncoderSettings) -> None:
        from tokenizers import Tokenizer

        self._settings = settings
        self._backend = Tokenizer.from_str(_with_whole_offsets(settings.tokenizer))
        self._backend.no_truncation()
        self._backend.no_padding()
        self._chat: ChatTemplate | None = None
        self._end_of_turn: int | None = None

    @property
    def chat(self) -> ChatTemplate:
        """Return the chat template, read when the first chat comes. Raises UsageError."""
        if self._chat is None:
            source, name = self._settings.chat_template, self._settings.chat_template_name
            if source is None:
                fix = "Set data.chat_template: FILE.jinja, or take the tokenizer of the model's chat variant."
                raise UsageError(Problem(name, "there is none, and there are chats", fix))
            self._chat = ChatTemplate(source, name, self._settings.special_tokens)
            added = self._backend.get_added_tokens_decoder()
            closing = self._backend.encode(self._chat.closing, add_special_tokens=False).ids
            # Some tokenizers have white space among their added tokens.
            named = [token for token in closing if token in added and added[token].content.strip()]
            self._end_of_turn = named[0] if named else None
        return self._chat

    @property
    def end_of_turn(self) -> int | None:
        """Return the special or added token that closes an assistant's turn, or None. Raises UsageError."""
        _ = self.chat
        return self._end_of_turn

    def encode(self, samples: Sequence[Sample]) -> Encoded:
        """Return samples as tokens. Raises UsageError for a template or a tokenizer that does not fit."""
        kept, texts, problems = [], [], []
        for sample in samples:
            try:
                texts.append(self._text(sample))
            except CannotRenderError as error:
                fix = "Change the row or the template, or pass over such rows by data.on_bad_row: skip."
                problems.append(Problem(sample.where, f"the chat template refuses it: {error}", fix))
            else:
                kept.append(sample)
        ids: list[list[int]] = [[]] * len(texts)
        spans: list[Spans] = [[]] * len(texts)
        # In three batches: where no places are needed, the tokenizer is faster by half.
        whole: list[int] = []
        parts: list[int] = []
        chats: list[int] = []
        for row, text in enumerate(texts):
            (chats if text.chat else whole if text.spans is None else parts).append(row)
        encode, fast = self._backend.encode_batch, self._backend.encode_batch_fast
        for row, found in zip(whole, fast([texts[row].text for row in whole]), strict=True):
            ids[row], spans[row] = self._finish(found, texts[row])
        for row, found in zip(parts, encode([texts[row].text for row in parts]), strict=True):
            ids[row], spans[row] = self._finish(found, texts[row])
        rendered = encode([texts[row].text for row in chats], add_special_tokens=False)
        for row, found in zip(chats, rendered, strict=True):
            ids[row], spans[row] = self._finish_chat(found, texts[row])
        documents = self._documents(ids, spans)
        held_out = np.fromiter(map(self._is_held_out, kept), dtype=bool, count=len(kept))
        return Encoded(documents, held_out, kept, problems)

    def _text(self, sample: Sample) -> _Text:
        if sample.messages:
            chat = self.chat
            if self._settings.train_on_inputs:
                text = chat.render(sample.messages)
                rendered = Rendered(text, ((0, len(text.rstrip())),), ends=sample.messages[-1]["role"] == "assistant")
            else:
                rendered = chat.turns(sample.messages, sample.prompt_messages)
            if rendered.ends and self._end_of_turn is None:
                # Nothing but EOS closes the turn, so it follows the last word, as it is to when text is generated.
                rendered = rendered._replace(text=rendered.text.rstrip())
            return _Text(rendered.text, list(rendered.spans), rendered)
        text = sample.prompt + sample.completion
        learn_all = self._settings.train_on_inputs or not sample.prompt
        return _Text(text, None if learn_all else [(len(sample.prompt), len(text))], None)

    def _finish(self, found: Any, text: _Text) -> tuple[list[int], Spans]:
        """Return the tokens of a text, EOS at their end, and which of them (from, to) are learnt."""
        ids: list[int] = found.ids
        begin = 0
        if text.spans is not None:
            ((first, _),) = text.spans
            begin = _token_at(found, first, len(text.text))
        if len(ids) > 1 and ids[0] == ids[1] == self._settings.bos_id:  # the row had written it out
            del ids[0]
            begin = max(0, begin - 1)
        if not ids or ids[-1] != self._settings.eos_id:
            ids.append(self._settings.eos_id)
        return ids, [(begin, len(ids))]

    def _finish_chat(self, found: Any, text: _Text) -> tuple[list[int], Spans]:
        """Return the tokens of a chat, and which of them are learnt: the assistant's turns, their ends too.

        Where the last turn is the assistant's and nothing closes it, EOS does.
        """
        assert text.chat is not None
        ids: list[int] = found.ids
        last, spans = len(text.text), []
        for begin, end in text.spans or ():
            if end <= begin:
                continue
            first, to = _token_at(found, begin, last), _token_at(found, end, last)
            if to < len(ids) and found.char_to_token(end - 1) == to:  # one token on both sides of the end
                to += 1
            spans.append((first, to))
        closed = spans and ids[spans[-1][1] - 1] in (self._end_of_turn, self._settings.eos_id)
        if text.chat.ends and not closed:
            ids.append(self._settings.eos_id)
            spans.append((len(ids) - 1, len(ids)))
        return ids, spans

    def _documents(self, ids: list[list[int]], spans: list[Spans]) -> Documents:
        lengths: npt.NDArray[np.int64] = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        total = int(lengths.sum())
        tokens = np.fromiter(chain.from_iterable(ids), dtype=np.uint32, count=total)
        if total and (largest := int(tokens.max())) >= self._settings.vocab_size:
            what = f"token {largest} is outside the model's vocabulary of {self._settings.vocab_size}"
            raise UsageError(Problem("tokenizer", what, "Use the tokenizer that belongs to the model."))
        offsets = np.repeat(np.cumsum(lengths) - lengths, [len(row) for row in spans])
        edges = np.array(list(chain.from_iterable(spans)), dtype=np.int64).reshape(-1, 2) + offsets[:, None]
        steps = np.bincount(edges[:, 0], minlength=total + 1) - np.bincount(edges[:, 1], minlength=total + 1)
        supervised = np.cumsum(steps)[:total] > 0
        dtype = np.uint16 if self._settings.vocab_size <= 2**16 else np.uint32
        return Documents(tokens.astype(dtype), supervised, lengths)

    def _is_held_out(self, sample: Sample) -> bool:
        """Return whether a row is for validation: by its content alone, so that other rows do not move it."""
        fraction = self._settings.validation_fraction
        return fraction > 0 and uniform(sample, "validation") < fraction


def _token_at(found: Any, place: int, last: int) -> int:
    """Return the first token that holds the character at `place` or one after it; the number of tokens if none does.

    Characters may belong to no token: white space that a tokenizer drops.
    """
    for character in range(place, last):
        token: int | None = found.char_to_token(character)
        if token is not None:
            return token
    return len(found)


def _with_whole_offsets(tokenizer: str) -> str:
    """Return tokenizer.json with the places of white space in its tokens kept: some leave them out of their offsets."""
    known = json.loads(tokenizer)
    processor = known.get("post_processor") or {}
    for part in (processor, *processor.get("processors", ())):
        if "trim_offsets" in part:
            part["trim_offsets"] = False
    return json.dumps(known)
