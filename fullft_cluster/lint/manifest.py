"""Kubernetes manifests as trees with lines: several documents, anchors, aliases and merge keys.

PyYAML's nodes are kept, not turned into Python values: every value keeps its line, and a tree of aliases is not
unfolded. Scalars are text, as written.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from fullft_cluster.errors import Problem, UsageError

MAX_DEPTH = 64
MAX_ALIASES = 100
"""More aliases than any manifest has; few enough that loops over aliases of aliases stay short ("billion laughs")."""

MAX_VALUES = 200_000
"""Keys and values of a file; each takes about a kilobyte. A bundle of an operator's CRDs has some ten thousand."""

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MERGE = "tag:yaml.org,2002:merge"


class Tree:
    """A YAML node: a mapping, a list or a scalar."""

    def __init__(self, node: yaml.Node, cache: dict[int, dict[str, tuple[yaml.Node, yaml.Node]]]) -> None:
        self._node = node
        self._cache = cache

    @property
    def line(self) -> int:
        """The line (from 1) that the value begins on."""
        return int(self._node.start_mark.line) + 1

    @property
    def text(self) -> str:
        """A scalar as written, without quotes; '' for anything else and for null."""
        if not isinstance(self._node, yaml.ScalarNode) or self._node.tag == "tag:yaml.org,2002:null":
            return ""
        return str(self._node.value)

    @property
    def number(self) -> int | None:
        """A whole number, or None."""
        text = self.text
        return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None

    @property
    def true(self) -> bool:
        """Whether it is YAML's true."""
        return self.text.lower() == "true"

    @property
    def is_mapping(self) -> bool:
        """Whether it has keys."""
        return isinstance(self._node, yaml.MappingNode)

    def items(self) -> Iterator[tuple[str, Tree, int]]:
        """Yield key, value and the key's line of a mapping, merge keys included."""
        for name, (key, value) in self._pairs().items():
            yield name, Tree(value, self._cache), int(key.start_mark.line) + 1

    def elements(self) -> list[Tree]:
        """Return the elements of a list, or none."""
        if not isinstance(self._node, yaml.SequenceNode):
            return []
        return [Tree(node, self._cache) for node in self._node.value]

    def get(self, *path: str) -> Tree | None:
        """Return the value under nested keys, or None where one is missing."""
        found: Tree = self
        for key in path:
            pair = found._pairs().get(key)
            if pair is None:
                return None
            found = Tree(pair[1], self._cache)
        return found

    def value(self, *path: str) -> str:
        """Return the text under nested keys, or ''."""
        found = self.get(*path)
        return found.text if found else ""

    def list(self, *path: str) -> list[Tree]:
        """Return the elements of the list under nested keys, or none."""
        found = self.get(*path)
        return found.elements() if found else []

    def key_line(self, *path: str) -> int:
        """Return the line of the last key of a path that is there, or of this node."""
        line, found = self.line, self
        for key in path:
            pair = found._pairs().get(key)
            if pair is None:
                break
            line, found = int(pair[0].start_mark.line) + 1, Tree(pair[1], self._cache)
        return line

    def _pairs(self) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        if not isinstance(self._node, yaml.MappingNode):
            return {}
        known = self._cache.get(id(self._node))
        if known is not None:
            return known
        pairs = self._cache[id(self._node)] = {}  # there already while merging: a mapping may merge itself
        merged: list[yaml.Node] = []
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in self._node.value:
            if key.tag == _MERGE:
                merged.extend(value.value if isinstance(value, yaml.SequenceNode) else [value])
            elif isinstance(key, yaml.ScalarNode):
                own[str(key.value)] = (key, value)
        for node in reversed(merged):  # the first of several wins: https://yaml.org/type/merge.html
            pairs.update(Tree(node, self._cache)._pairs())
        pairs.update(own)
        return pairs


def read_documents(text: str, path: str) -> list[Tree]:
    """Return the documents of a file. Raises UsageError (``file:line: what. fix``) for what is no YAML."""
    try:
        _refuse_traps(text, path)
        loader = _Loader(text)
        try:
            trees = []
            while loader.check_node():
                trees.append(Tree(loader.get_node(), {}))
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise UsageError(_problem(error, path, text)) from None
    return [part for tree in trees for part in _unpacked(tree)]


def _unpacked(tree: Tree) -> list[Tree]:
    """Return the objects of a ``kind: List``, or the document itself."""
    return tree.list("items") if tree.value("kind").endswith("List") and tree.get("items") else [tree]


def _refuse_traps(text: str, path: str) -> None:
    """Raise UsageError for deep nesting, too many aliases or values, from the events, before a tree is built."""
    depth = aliases = values = 0
    for event in yaml.parse(text, Loader=_Loader):
        aliases += isinstance(event, yaml.AliasEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        values += isinstance(event, yaml.ScalarEvent)
        place = f"{path}:{event.start_mark.line + 1}" if event.start_mark else path
        if depth > MAX_DEPTH:
            raise UsageError(Problem(place, "is nested too deeply", "No manifest is."))
        if values > MAX_VALUES:
            raise UsageError(Problem(place, f"has more than {MAX_VALUES:,} values", "Give a manifest, not data."))
        if aliases > MAX_ALIASES:
            raise UsageError(Problem(place, f"has more than {MAX_ALIASES} aliases", "Write the values out."))


def _problem(error: yaml.YAMLError, path: str, text: str) -> Problem:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    where = f"{path}:{mark.line + 1}" if mark else path
    lines = text.split("\n")
    line = lines[mark.line] if mark and mark.line < len(lines) else ""
    if "{{" in line or "{%" in line:
        return Problem(where, "is a template, not YAML", "Render it first (`helm template`, `kustomize build`).")
    if "\t" in line:
        return Problem(where, "a tab stands where YAML wants spaces", "Indent with spaces.")
    what = getattr(error, "problem", None) or str(error).splitlines()[0]
    return Problem(where, f"is not YAML: {what}", "Check the indentation and the quotes around it.")
