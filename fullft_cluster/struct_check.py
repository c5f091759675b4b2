"""Nested dicts against msgspec structs: every problem at once, each leaf by itself.

`check` compares a dict with a struct type leaf by leaf; `convert` makes the struct once nothing is wrong.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, get_args, get_origin

import msgspec
from msgspec import structs

from fullft_cluster.errors import Problem, did_you_mean
from fullft_cluster.type_words import choices, describe, show

_StructT = TypeVar("_StructT", bound=msgspec.Struct)
Where = Callable[[str], str]


def check(
    struct_type: type[msgspec.Struct],
    data: Mapping[str, Any],
    where: Where,
    foreign: Mapping[str, str] | None = None,
) -> list[Problem]:
    """Return every problem of a nested dict with a struct type.

    ``where(dotted_key)`` gives the place (``job.yaml:12``, ``--set``); ``foreign`` maps names that other tools use, and
    ``key: value`` of ours that is refused, to what to write instead. Unknown keys, wrong types, violated bounds and
    missing required keys are found, each leaf by itself.
    """
    sections = dict(_all_keys(struct_type))
    return list(_check(struct_type, data, "", where, (sections, foreign or {})))


def convert(struct_type: type[_StructT], data: Mapping[str, Any]) -> _StructT:
    """Make the struct from a dict that `check` found nothing wrong with. Raises msgspec.ValidationError otherwise."""
    cleaned = {key: value for key, value in data.items() if not (value is None and key in _sections(struct_type))}
    return msgspec.convert(cleaned, type=struct_type)


def is_struct(kind: Any) -> bool:
    """Return whether a field's type is a section (a struct of its own)."""
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def item_struct(kind: Any) -> type[msgspec.Struct] | None:
    """Return the struct that a field's type is a list of (`tuple[Source, ...]`), or None."""
    found = [item for item in get_args(kind) if is_struct(item)] if get_origin(kind) in (tuple, list) else []
    return found[0] if found else None


def _sections(struct_type: type[msgspec.Struct]) -> set[str]:
    return {field.name for field in structs.fields(struct_type) if is_struct(field.type)}


def _all_keys(struct_type: type[msgspec.Struct], prefix: str = "") -> Iterator[tuple[str, list[str]]]:
    """Yield each section's dotted path with the names of its keys; the top level is ''."""
    fields = structs.fields(struct_type)
    yield prefix, [field.name for field in fields]
    for field in fields:
        if is_struct(field.type):
            yield from _all_keys(field.type, f"{prefix}{field.name}.")
        elif item := item_struct(field.type):
            yield from _all_keys(item, f"{prefix}{field.name}[].")


_Known = tuple[Mapping[str, list[str]], Mapping[str, str]]


def _check(
    struct_type: type[msgspec.Struct], data: Mapping[str, Any], prefix: str, where: Where, known: _Known
) -> Iterator[Problem]:
    fields = {field.name: field for field in structs.fields(struct_type)}
    for key, value in data.items():
        dotted = f"{prefix}{key}"
        place = f"{where(dotted)}: {dotted}"
        if key not in fields:
            yield Problem(place, "unknown key", _unknown_key_fix(str(key), prefix, known))
        elif item := item_struct(fields[key].type):
            yield from _check_items(item, value, dotted, where, known)
        elif not is_struct(fields[key].type):
            problem = check_value(fields[key].type, value, place)
            if problem:
                reason = known[1].get(f"{dotted}: {value}".lower())
                yield Problem(place, problem.what, reason) if reason else problem
        elif isinstance(value, Mapping):
            yield from _check(fields[key].type, value, f"{dotted}.", where, known)
        elif value is not None:  # an empty section is None
            names = ", ".join(known[0][f"{dotted}."])
            yield Problem(place, f"{show(value)} is not a section", f"Write its keys below it, indented: {names}.")
    for name, field in fields.items():
        if field.required and name not in data:
            fix = f"Write {describe(field.type)}."
            yield Problem(f"{where(prefix.rstrip('.'))}: {prefix}{name}", "is missing", fix)


def _check_items(item: type[msgspec.Struct], value: Any, dotted: str, where: Where, known: _Known) -> Iterator[Problem]:
    """Yield the problems of a list of structs: ``data.sources[1].weight``."""
    names = ", ".join(known[0][f"{_listed(dotted)}[]."])
    if not isinstance(value, list | tuple):
        fix = f"Write a list; each item has some of these keys: {names}."
        yield Problem(f"{where(dotted)}: {dotted}", f"{show(value)} is not a list", fix)
        return
    for number, inner in enumerate(value):
        key = f"{dotted}[{number}]"
        if isinstance(inner, Mapping):
            yield from _check(item, inner, f"{key}.", where, known)
        else:
            fix = f"Write its keys as a mapping: {names}."
            yield Problem(f"{where(key)}: {key}", f"{show(inner)} is not a mapping", fix)


def _listed(dotted: str) -> str:
    """Return a dotted key without the numbers of items: ``data.sources[].``."""
    return re.sub(r"\[\d+\]", "[]", dotted)


def _unknown_key_fix(key: str, prefix: str, known: _Known) -> str:
    sections, foreign = known
    prefix = _listed(prefix)
    for path, names in sections.items():
        if path != prefix and key in names:
            return f"Write it as {path}{key}." if path else f"Write {key} at the top level."
    if key.lower() in foreign:
        return foreign[key.lower()]
    return did_you_mean(key, sections[prefix])


def check_value(kind: Any, value: Any, place: str) -> Problem | None:
    """Return what is wrong with one value for a field's type, or None."""
    if isinstance(value, float) and not math.isfinite(value):
        return Problem(place, f"{value} is not a number to compute with", f"Write {describe(kind)}.")
    try:
        msgspec.convert(value, type=kind)
    except (msgspec.ValidationError, OverflowError):
        allowed = choices(kind)
        if allowed and isinstance(value, str):
            fix = did_you_mean(value, allowed)
        elif describe(kind) == "text" and isinstance(value, int | float):
            fix = f"Quote it: '{show(value)}'."
        else:
            fix = f"Write {describe(kind)}."
        return Problem(place, f"{show(value)} is not {describe(kind)}", fix)
    return None
