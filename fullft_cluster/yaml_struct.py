"""YAML against msgspec structs, with the line of every key and every error at once.

`load_yaml` reads a file as YAML 1.2's core schema (https://yaml.org/spec/1.2.2/#103-core-schema), not as PyYAML's
1.1: there ``1e-5`` is a string, ``24:00:00`` the number 86400 and ``no`` is false, each a trap in a job file. Anchors
and aliases are refused: a config needs none, and nested ones blow up to gigabytes (the "billion laughs").
`check` compares a nested dict with a struct type leaf by leaf; `convert` makes the struct once nothing is wrong.
"""

from __future__ import annotations

import math
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml
from msgspec import structs

from fullft_cluster.errors import Problem, UsageError, did_you_mean
from fullft_cluster.type_words import choices, describe, show

MAX_BYTES = 1 << 20
"""Larger files are refused unread: no config is so long, and a data file given by mistake may be huge."""

MAX_DEPTH = 32

_BASE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_StructT = TypeVar("_StructT", bound=msgspec.Struct)
Where = Callable[[str], str]


class _Loader(_BASE):  # type: ignore[misc]  # the C loader where libyaml is there
    """SafeLoader with the scalars of YAML 1.2's core schema."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?[0-9]+$|^0o[0-7]+$|^0x[0-9a-fA-F]+$", list("-+0123456789")),
    (
        "float",
        r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$",
        list("-+0123456789."),
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


def _construct_int(loader: Any, node: Any) -> int:
    """Return a whole number; unlike YAML 1.1, a leading 0 does not make it octal."""
    text = loader.construct_scalar(node)
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


@dataclass(frozen=True)
class Located:
    """A YAML mapping with the line of each of its keys."""

    path: str
    data: dict[str, Any]
    lines: dict[str, int]
    """Line (from 1) of each key, by its dotted path: ``train.seq_len``."""
    problems: tuple[Problem, ...] = ()
    """What is wrong with the text itself though it could be read: duplicate keys, keys that are not names."""

    def where(self, key: str) -> str:
        """Return ``file:line`` of a key, or of the nearest section around it that is there."""
        while key:
            if key in self.lines:
                return f"{self.path}:{self.lines[key]}"
            key = key.rpartition(".")[0]
        return self.path

    def section(self, key: str) -> Located:
        """Return one section as a document of its own: ``section("config").where("train")`` still finds its line."""
        data = self.data.get(key) or {}
        lines = {k.removeprefix(f"{key}."): n for k, n in self.lines.items() if k.startswith(f"{key}.")}
        return Located(self.path, data if isinstance(data, dict) else {}, lines)


def load_yaml(path: Path) -> Located:
    """Read a YAML mapping. Raises UsageError for what cannot be read as one (``file:line: what. fix``)."""
    name = str(path)
    try:
        data = _read_regular(path)
        if len(data) > MAX_BYTES:
            raise UsageError(Problem(name, "is larger than 1 MiB", "Give a YAML configuration, not data."))
        text = data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError:
        raise UsageError(Problem(name, "is not text in UTF-8", "Give a YAML configuration.")) from None
    except IsADirectoryError:
        raise UsageError(Problem(name, "is a directory", "Give a YAML file.")) from None
    except OSError as error:
        raise UsageError(Problem(name, f"cannot be read: {error.strerror}", "Give a YAML file.")) from None
    except ValueError as error:  # a NUL byte in the path
        raise UsageError(Problem(repr(name), f"is not a path: {error}")) from None
    return loads_yaml(text, name)


def _read_regular(path: Path) -> bytes:
    """Return at most one byte more than is allowed. Raises UsageError for a pipe or a device: it may never end."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise UsageError(Problem(str(path), "is not a regular file", "Write the YAML to a file and give that."))
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def loads_yaml(text: str, name: str) -> Located:
    """Read a YAML mapping from text; ``name`` stands for the file in errors. Raises UsageError like `load_yaml`."""
    try:
        _refuse_traps(text, name)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return Located(name, {}, {})
            if not isinstance(node, yaml.MappingNode):
                fix = "Write `key: value` lines."
                raise UsageError(Problem(f"{name}:{node.start_mark.line + 1}", "is not a mapping of keys", fix))
            lines: dict[str, int] = {}
            problems = tuple(_walk_keys(node, "", name, lines))
            data = loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise UsageError(_yaml_problem(error, name, text)) from None
    except ValueError as error:  # int() of thousands of digits, a date that is none
        raise UsageError(Problem(name, f"holds a value that cannot be read: {error}")) from None
    if problems:  # keys that are no strings: nothing after this could name them
        data = {key: value for key, value in data.items() if isinstance(key, str)}
    return Located(name, data, lines, problems)


def _refuse_traps(text: str, name: str) -> None:
    """Raise UsageError for anchors, aliases and deep nesting, from the stream of events, before anything is built."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        place = f"{name}:{event.start_mark.line + 1}" if event.start_mark else name
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise UsageError(Problem(place, "anchors and aliases are not read", "Write the value out."))
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise UsageError(Problem(place, "is nested too deeply", "A configuration has two levels."))


def parse_value(text: str) -> Any:
    """Return what a value given as ``--set key=VALUE`` means in YAML. Raises UsageError when it is no YAML."""
    located = loads_yaml(f"value: {text}" if text.strip() else "value: ''", repr(text))
    if set(located.data) != {"value"}:
        raise UsageError(Problem(repr(text), "is more than one value", "Quote it."))
    return located.data["value"]


def _walk_keys(node: yaml.MappingNode, prefix: str, name: str, lines: dict[str, int]) -> Iterator[Problem]:
    """Fill in the lines of all keys; yield duplicates and keys that are not strings."""
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
            shown = key_node.value if isinstance(key_node, yaml.ScalarNode) else "a list or mapping"
            yield Problem(f"{name}:{line}", f"{shown!r} is not a name of a key", "Quote it, or write a name.")
            continue
        dotted = f"{prefix}{key_node.value}"
        if dotted in lines:
            yield Problem(f"{name}:{line}: {dotted}", f"is already given on line {lines[dotted]}", "Keep one of them.")
        lines.setdefault(dotted, line)
        if isinstance(value_node, yaml.MappingNode):
            yield from _walk_keys(value_node, f"{dotted}.", name, lines)


def _yaml_problem(error: yaml.YAMLError, name: str, text: str) -> Problem:
    """Say what PyYAML says, in the place where it says it."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    where = f"{name}:{mark.line + 1}" if mark else name
    lines = text.splitlines()
    if mark and mark.line < len(lines) and "\t" in lines[mark.line]:
        return Problem(where, "a tab stands where YAML wants spaces", "Indent with spaces.")
    what = getattr(error, "problem", None) or str(error).splitlines()[0]
    return Problem(where, f"is not YAML: {what}", "Check the indentation and the quotes around it.")


# --- against a struct


def check(
    struct_type: type[msgspec.Struct],
    data: Mapping[str, Any],
    where: Where,
    foreign: Mapping[str, str] | None = None,
) -> list[Problem]:
    """Return every problem of a nested dict with a struct type.

    ``where(dotted_key)`` gives the place (``job.yaml:12``, ``--set``); ``foreign`` maps names that other tools use to
    what to write instead. Unknown keys, wrong types, violated bounds and missing required keys are found, each leaf
    by itself.
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


def _sections(struct_type: type[msgspec.Struct]) -> set[str]:
    return {field.name for field in structs.fields(struct_type) if is_struct(field.type)}


def _all_keys(struct_type: type[msgspec.Struct], prefix: str = "") -> Iterator[tuple[str, list[str]]]:
    """Yield each section's dotted path with the names of its keys; the top level is ''."""
    fields = structs.fields(struct_type)
    yield prefix, [field.name for field in fields]
    for field in fields:
        if is_struct(field.type):
            yield from _all_keys(field.type, f"{prefix}{field.name}.")


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
        elif not is_struct(fields[key].type):
            problem = check_value(fields[key].type, value, place)
            if problem:
                yield problem
        elif isinstance(value, Mapping):
            yield from _check(fields[key].type, value, f"{dotted}.", where, known)
        elif value is not None:  # an empty section is None
            names = ", ".join(known[0][f"{dotted}."])
            yield Problem(place, f"{show(value)} is not a section", f"Write its keys below it, indented: {names}.")
    for name, field in fields.items():
        if field.required and name not in data:
            fix = f"Write {describe(field.type)}."
            yield Problem(f"{where(prefix.rstrip('.'))}: {prefix}{name}", "is missing", fix)


def _unknown_key_fix(key: str, prefix: str, known: _Known) -> str:
    sections, foreign = known
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
