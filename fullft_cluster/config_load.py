"""Reads a Config from its sources and keeps the origin of each value.

Precedence: flag > ``--set`` > YAML > cluster profile > default. Every problem of every source is collected before
anything is raised.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from msgspec import structs

from fullft_cluster.config import Config
from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.foreign_names import FOREIGN_NAMES
from fullft_cluster.hardware import Cluster, load_cluster
from fullft_cluster.struct_check import check, convert, is_struct
from fullft_cluster.yaml_struct import Located, load_yaml, parse_value

DEFAULT_CLUSTER = {"local": "local"}
"""Cluster profile by backend, where the user names none."""


@dataclass(frozen=True)
class Resolved:
    """A configuration, where each of its values came from, and the cluster that it is for."""

    config: Config
    cluster: Cluster
    origins: Mapping[str, str] = field(default_factory=dict)
    """Dotted key -> ``flag``, ``--set``, ``job.yaml:12``, ``cluster NAME``; a key that is missing has its default."""

    def changed(self, **values: Any) -> Resolved:
        """Return a copy with dotted keys (``data__train``) replaced; their origin stays."""
        data = msgspec.to_builtins(self.config)
        for key, value in values.items():
            _put(data, key.replace("__", "."), value)
        return Resolved(convert(Config, data), self.cluster, self.origins)


def read_config(path: Path) -> Config:
    """Read a config.yaml of a run directory. Raises UsageError with every problem of the file."""
    located = load_yaml(path)
    problems = [*located.problems, *check(Config, located.data, located.where, FOREIGN_NAMES)]
    if problems:
        raise UsageError(problems)
    return convert(Config, located.data)


def read_config_text(text: str) -> Config:
    """Return the configuration of a config.yaml that `to_yaml` wrote."""
    return msgspec.yaml.decode(text.encode(), type=Config)


def resolve(flags: Mapping[str, Any], sets: Sequence[str], path: Path | None) -> Resolved:
    """Return the configuration from flags (dotted key -> value, None where not given), ``--set`` and a YAML file.

    Raises UsageError with every problem of every source at once.
    """
    yaml = load_yaml(path) if path else Located("", {}, {})
    problems: list[Problem] = [*yaml.problems]
    given = _nested({key: value for key, value in flags.items() if value is not None})
    assigned, set_problems = _assignments(sets)
    problems += set_problems
    problems += check(Config, given, lambda key: "flag", FOREIGN_NAMES)
    problems += check(Config, assigned, lambda key: "--set", FOREIGN_NAMES)
    problems += check(Config, yaml.data, yaml.where, FOREIGN_NAMES)
    if problems:
        raise UsageError(problems)
    chosen = _merged(yaml.data, assigned, given)
    name = str(chosen.get("cluster") or DEFAULT_CLUSTER.get(str(chosen.get("backend")), "a100-80gb"))
    cluster = load_cluster(name)
    overlay = dict(cluster.config)  # checked by load_cluster
    origins: dict[str, str] = {}
    for source, data in (
        (f"cluster {cluster.name}", overlay),
        (None, yaml.data),
        ("--set", assigned),
        ("flag", given),
    ):
        for key, _ in _leaves(data):
            origins[key] = source or yaml.where(key)
    return Resolved(convert(Config, _merged(overlay, chosen, {"cluster": name})), cluster, origins)


def to_yaml(resolved: Resolved, planned: Mapping[str, Any] | None = None) -> str:
    """Return the configuration as YAML with the origin of each value: a valid ``--config`` again.

    `planned` has what was chosen for values that are left open, by dotted key; it is told beside their origin.
    Text is quoted as JSON and floats keep their point, so that YAML 1.1 and 1.2 readers agree on every value.
    """
    lines = ["# The resolved configuration. The comment behind a value says where it came from."]
    data = msgspec.to_builtins(resolved.config)
    for struct_field in structs.fields(Config):
        key = struct_field.name
        if not is_struct(struct_field.type):
            lines.append(_yaml_line(key, data[key], resolved.origins.get(key, "default")))
    for struct_field in structs.fields(Config):
        if is_struct(struct_field.type):
            section = struct_field.name
            lines += ["", f"{section}:"]
            for name, value in data[section].items():
                dotted = f"{section}.{name}"
                origin = resolved.origins.get(dotted, "default")
                if planned and dotted in planned:
                    origin += f": planned {_yaml_value(planned[dotted])}"
                lines.append("  " + _yaml_line(name, value, origin))
    return "\n".join(lines) + "\n"


def _yaml_line(key: str, value: Any, origin: str) -> str:
    return f"{key}: {_yaml_value(value)}  # {' '.join(origin.split())}"


def _yaml_value(value: Any) -> str:
    """Return a value on one line: JSON, but for floats."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_yaml_value, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{json.dumps(k, ensure_ascii=False)}: {_yaml_value(v)}' for k, v in value.items())}}}"
    text = json.dumps(value, ensure_ascii=False)
    if isinstance(value, float) and "e" in text and "." not in text:
        text = text.replace("e", ".0e")  # 1e-05 is text to YAML 1.1
    return text


def _assignments(sets: Sequence[str]) -> tuple[dict[str, Any], list[Problem]]:
    """Return the nested dict of ``section.key=value`` items; a value is read as YAML."""
    values: dict[str, Any] = {}
    problems = []
    for item in sets:
        key, equals, text = item.partition("=")
        if not equals or not key.strip():
            problems.append(Problem("--set", f"{item!r} is not section.key=value", "Write --set train.seq_len=4096."))
            continue
        try:
            values[key.strip()] = parse_value(text)
        except UsageError as error:
            problems += [Problem(f"--set {key.strip()}", problem.what, problem.fix) for problem in error.problems]
    return _nested(values), problems


def _nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key, value in dotted.items():
        _put(data, key, value)
    return data


def _put(data: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, key = dotted.split(".")
    for section in sections:
        inner = data.setdefault(section, {})
        if not isinstance(inner, dict):
            data[section] = inner = {}
        data = inner
    data[key] = value


def _merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the layers merged, later ones over earlier ones."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if isinstance(value, Mapping):
                result[key] = _merged(result.get(key) or {}, value)
            elif value is not None or key not in result:
                result[key] = value
    return result


def _leaves(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", value
