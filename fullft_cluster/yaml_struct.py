"""YAML with the line of every key, and every error at once.

`load_yaml` reads a file as YAML 1.2's core schema (https://yaml.org/spec/1.2.2/#103-core-schema), not as PyYAML's
1.1: there ``1e-5`` is a string, ``24:00:00`` the number 86400 and ``no`` is false, each a trap in a job file. Anchors
and aliases are refused: a config needs none, and nested ones blow up to gigabytes (the "billion laughs").
`struct_check` compares what was read with a struct type.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from fullft_cluster.errors import Problem, UsageError

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
        for number, item in enumerate(value_node.value if isinstance(value_node, yaml.SequenceNode) else ()):
            lines.setdefault(f"{dotted}[{number}]", item.start_mark.line + 1)
            if isinstance(item, yaml.MappingNode):
                yield from _walk_keys(item, f"{dotted}[{number}].", name, lines)


def _yaml_problem(error: yaml.YAMLError, name: str, text: str) -> Problem:
    """Say what PyYAML says, in the place where it says it."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    where = f"{name}:{mark.line + 1}" if mark else name
    lines = text.splitlines()
    if mark and mark.line < len(lines) and "\t" in lines[mark.line]:
        return Problem(where, "a tab stands where YAML wants spaces", "Indent with spaces.")
    what = getattr(error, "problem", None) or str(error).splitlines()[0]
    return Problem(where, f"is not YAML: {what}", "Check the indentation and the quotes around it.")
