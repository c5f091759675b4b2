"""Types and values in the words of an error message: ``a whole number, 1 or more``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgspec import inspect


def show(value: Any) -> str:
    """Return a value for a message, in YAML's words and not too long."""
    words = {None: "nothing", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return words[value]
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def choices(kind: Any) -> list[str]:
    """Return the literals that a field's type allows, as text; none for other types."""
    info = inspect.type_info(kind)
    members = info.types if isinstance(info, inspect.UnionType) else (info,)
    return [str(value) for m in members if isinstance(m, inspect.LiteralType) for value in m.values]


def describe(kind: Any) -> str:
    """Return a field's type in words: ``a whole number, 1 or more``."""
    return _words(inspect.type_info(kind))


def _words(info: inspect.Type) -> str:
    """Return a type in words (see `describe`)."""
    if isinstance(info, inspect.UnionType):
        return " or ".join(_words(t) for t in info.types if not isinstance(t, inspect.NoneType))
    if isinstance(info, inspect.LiteralType):
        return "one of " + ", ".join(str(value) for value in info.values)
    if isinstance(info, inspect.IntType | inspect.FloatType):
        noun = "a whole number" if isinstance(info, inspect.IntType) else "a number"
        return ", ".join([noun, *_bounds(info)])
    if isinstance(info, inspect.ListType | inspect.VarTupleType):
        return f"a list, each item {_words(info.item_type)}"
    if isinstance(info, inspect.DictType):
        return f"a mapping, each value {_words(info.value_type)}"
    plain = {inspect.StrType: "text", inspect.BoolType: "true or false", inspect.AnyType: "any value"}
    return plain.get(type(info), "a value of the right type")


def _bounds(info: inspect.IntType | inspect.FloatType) -> Iterator[str]:
    """Yield the bounds of a number in words."""
    if info.ge is not None and info.le is not None:
        yield f"{info.ge} to {info.le}"
        return
    for bound, words in (
        (info.ge, "{} or more"),
        (info.gt, "above {}"),
        (info.le, "{} or less"),
        (info.lt, "below {}"),
    ):
        if bound is not None:
            yield words.format(bound)
