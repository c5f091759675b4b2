"""JSON of others, decoded into structs."""

from __future__ import annotations

from typing import TypeVar

import msgspec

T = TypeVar("T")


def decode(data: bytes, kind: type[T]) -> T:
    """Decode JSON. Raises msgspec.DecodeError for whatever is wrong with it, encoding and nesting included."""
    try:
        return msgspec.json.decode(data, type=kind)
    except UnicodeDecodeError:
        raise msgspec.DecodeError("it is not text in UTF-8") from None
    except RecursionError:
        raise msgspec.DecodeError("it is nested too deeply") from None
