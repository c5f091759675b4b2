"""Manifests against the closed schemas of Kubernetes and of the operators: an unknown field is an error."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

CRDS = Path(__file__).parent / "fixtures" / "crds"
KUBERNETES = "1.36"


def documents(text: str) -> list[dict[str, Any]]:
    """The objects in a stream of manifests; a key that stands twice is an error."""
    return list(yaml.load_all(text, Loader=_Unique))


_BASE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Unique(_BASE):  # type: ignore[misc]
    """As the API server under strict field validation: no key twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key stands twice: {keys}"
        return dict(super().construct_mapping(node, deep))


def check(document: dict[str, Any]) -> None:
    """Raise kubernetes_validate's or jsonschema's ValidationError for what the server would refuse or drop."""
    kind = (document["apiVersion"], document["kind"])
    if kind in _custom():
        jsonschema.Draft202012Validator(_custom()[kind]).validate(document)
    else:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


@cache
def _custom() -> dict[tuple[str, str], dict[str, Any]]:
    found = {}
    packed = [gzip.decompress(path.read_bytes()) for path in sorted(CRDS.glob("*.json.gz"))]
    for text in (*packed, *(path.read_bytes() for path in sorted(CRDS.glob("*.json")))):
        crd = json.loads(text)
        schema = _closed(crd["schema"])
        schema["properties"]["metadata"] = True  # ObjectMeta, which the server knows without the CRD
        found[crd["apiVersion"], crd["kind"]] = schema
    assert len(found) == 6
    return found


def _closed(schema: Any) -> Any:
    """The same schema, in which an object has no fields but those that are named."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items() if key != "properties"}
    if "properties" in schema:
        closed["properties"] = {name: _closed(value) for name, value in schema["properties"].items()}
    if schema.get("type") == "object" and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    return closed
