"""Chats as they are written elsewhere, in the one form that templates take: role and content, in order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fullft_cluster.errors import did_you_mean
from fullft_cluster.row_files import json_type

ROLES: dict[str, str] = {
    # Ours, which chat templates know.
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    # OpenAI's: https://platform.openai.com/docs/api-reference/chat
    "developer": "system",
    "function": "tool",
    # ShareGPT's and its descendants' (FastChat, LLaMA-Factory, axolotl).
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
}
"""What a role is called -> what it is."""
KEPT = ("tool_calls", "tool_call_id", "name", "reasoning_content")
"""Keys of a message besides role and content that chat templates render."""

Messages = tuple[dict[str, Any], ...]


class ChatError(Exception):
    """What is wrong with a chat, and what to write instead."""

    def __init__(self, what: str, fix: str = "") -> None:
        super().__init__(what)
        self.what, self.fix = what, fix


def read_messages(value: Any, name: str, role_key: str, content_key: str) -> Messages:
    """Return the messages of a chat. Raises ChatError.

    ``name`` is the row's key that holds them; the keys are those of a message (`role` and `content`, or ShareGPT's
    `from` and `value`).
    """
    if value is None or not isinstance(value, list | tuple):
        raise ChatError(f"{name} is {json_type(value)}, not a list of messages")
    if not value:
        raise ChatError(f"{name} is empty", "Take the row out.")
    return tuple(_message(item, f"{name}[{n}]", role_key, content_key) for n, item in enumerate(value))


def check_turns(messages: Messages, name: str, *, train_on_inputs: bool) -> None:
    """Raise ChatError for a chat that has nothing to learn: no assistant's turn with something in it."""
    if train_on_inputs or any(m["role"] == "assistant" for m in messages):
        return
    raise ChatError(f"{name} has no assistant's turn, so nothing to learn", "Set data.train_on_inputs, or take it out.")


def _message(item: Any, name: str, role_key: str, content_key: str) -> dict[str, Any]:
    if not isinstance(item, Mapping):
        raise ChatError(f"{name} is {json_type(item)}, not an object with {role_key} and {content_key}")
    if item.get(role_key) is None:
        raise ChatError(f"{name} has no {role_key}" if role_key not in item else f"{name}.{role_key} is null")
    said = item[role_key]
    role = ROLES.get(said.strip().lower()) if isinstance(said, str) else None
    if role is None:
        fix = did_you_mean(str(said)[:40], ROLES) if isinstance(said, str) else "Write user, assistant, system or tool."
        raise ChatError(f"{name}.{role_key} {_short(said)} is no role", fix)
    kept = {key: item[key] for key in KEPT if item.get(key) is not None}
    content = _content(item, name, content_key, calls="tool_calls" in kept)
    if role == "assistant" and not content.strip() and "tool_calls" not in kept:
        raise ChatError(f"{name}.{content_key} is empty, and it is the assistant's", "Take the turn out.")
    return {"role": role, "content": content, **kept}


def _content(item: Mapping[str, Any], name: str, key: str, *, calls: bool) -> str:
    """Return a message's text; OpenAI's list of parts is joined where all of them are text."""
    value = item.get(key)
    if value is None:
        if calls:
            return ""
        raise ChatError(f"{name}.{key} is null" if key in item else f"{name} has no {key}")
    if isinstance(value, list | tuple):
        for part in value:
            kind = part.get("type", "text") if isinstance(part, Mapping) else json_type(part)
            if kind != "text" or not isinstance(part.get("text"), str):
                raise ChatError(f"{name}.{key} has a part that is no text ({_short(kind)})", "Only text is learnt.")
        return "".join(part["text"] for part in value)
    if not isinstance(value, str):
        raise ChatError(f"{name}.{key} is {json_type(value)}, not a string")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
