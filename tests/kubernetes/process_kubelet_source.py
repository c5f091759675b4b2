"""What a pod's containers get from the API: environment and files of ConfigMaps, Secrets, fields, resources, tokens."""

from __future__ import annotations

import base64
import re
from fractions import Fraction
from typing import Any

from kube_client import ApiError, Client, Object

VARIABLE = re.compile(r"\$\$|\$\(([A-Za-z_.-][A-Za-z0-9_.-]*)\)")
DECIMAL = {"k": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}
BINARY = {"Ki": 1024, "Mi": 1024**2, "Gi": 1024**3, "Ti": 1024**4}
FACTORS = {"": Fraction(1), "m": Fraction(1, 1000)} | {
    key: Fraction(value) for key, value in (DECIMAL | BINARY).items()
}


class SourceError(Exception):
    """Something that the pod refers to is not there (yet): the kubelet waits for it."""


def expand(text: str, env: dict[str, str]) -> str:
    """Replace $(NAME) by what `env` has, and $$ by $; what is not known stays, as Kubernetes has it."""

    def value(match: re.Match[str]) -> str:
        return "$" if match[1] is None else env.get(match[1], match[0])

    return VARIABLE.sub(value, text)


class Source:
    """What one pod may be given. `live` is what the kubelet adds to its status: podIP, hostIP."""

    def __init__(self, client: Client, pod: Object, live: dict[str, str]) -> None:
        self.client, self.pod, self.live = client, pod, live
        self.namespace = pod["metadata"]["namespace"]

    def environment(self, container: Object) -> dict[str, str]:
        """Return the variables that the container asks for."""
        env: dict[str, str] = {}
        for each in container.get("envFrom", []):
            kind, reference = ("configmaps", each.get("configMapRef")) if "configMapRef" in each else ("secrets", None)
            reference = reference or each["secretRef"]
            data = self.data(kind, reference["name"], optional=reference.get("optional", False))
            env |= {each.get("prefix", "") + key: value.decode() for key, value in data.items()}
        for each in container.get("env", []):
            origin = each.get("valueFrom")
            value = expand(each.get("value", ""), env) if not origin else self._value(origin, container)
            if value is not None:
                env[each["name"]] = value
        return env

    def _value(self, origin: Object, container: Object) -> str | None:
        if "fieldRef" in origin:
            return self.field(origin["fieldRef"]["fieldPath"])
        if "resourceFieldRef" in origin:
            return resource(origin["resourceFieldRef"], container)
        kind, reference = next(iter(origin.items()))
        plural = {"configMapKeyRef": "configmaps", "secretKeyRef": "secrets"}[kind]
        optional = reference.get("optional", False)
        data = self.data(plural, reference["name"], optional=optional)
        if reference["key"] in data:
            return data[reference["key"]].decode()
        if optional:
            return None
        raise SourceError(f"couldn't find key {reference['key']} in {plural} {self.namespace}/{reference['name']}")

    def data(self, plural: str, name: str, *, optional: bool) -> dict[str, bytes]:
        """Return the data of a ConfigMap or Secret."""
        try:
            found = self.client.find(f"/api/v1/namespaces/{self.namespace}/{plural}/{name}")
        except (ApiError, OSError) as error:
            raise SourceError(str(error)) from error
        if found is None and not optional:
            raise SourceError(f'{plural.removesuffix("s")} "{name}" not found')
        found = found or {}
        plain = {key: value.encode() for key, value in (found.get("data") or {}).items()}
        if plural == "secrets":
            plain = {key: base64.b64decode(value) for key, value in plain.items()}
        return plain | {key: base64.b64decode(value) for key, value in (found.get("binaryData") or {}).items()}

    def field(self, path: str) -> str:
        """Return the value of a fieldPath."""
        if found := re.fullmatch(r"metadata\.(annotations|labels)\['(.+)'\]", path):
            return str(self.pod["metadata"].get(found[1], {}).get(found[2], ""))
        if path.startswith("status."):
            return self.live.get(path.removeprefix("status."), "")
        value: Any = self.pod
        for part in path.split("."):
            value = value.get(part, {})
        if isinstance(value, dict):  # all labels or annotations, one a line
            return "\n".join(f'{key}="{each}"' for key, each in value.items())
        return str(value)

    # --- files
    def files(self, volume: Object) -> dict[str, bytes]:
        """Return the files of a ConfigMap, Secret, downwardAPI or projected volume, by their paths in it."""
        if "configMap" in volume:
            return self._items("configmaps", volume["configMap"]["name"], volume["configMap"])
        if "secret" in volume:
            return self._items(
                "secrets", volume["secret"].get("secretName") or volume["secret"]["name"], volume["secret"]
            )
        if "downwardAPI" in volume:
            items = volume["downwardAPI"].get("items", [])
            return {item["path"]: (self._value(item, {}) or "").encode() for item in items}
        if "serviceAccountToken" in volume:
            return {volume["serviceAccountToken"]["path"]: self.token(volume["serviceAccountToken"]).encode()}
        found: dict[str, bytes] = {}
        for source in volume["projected"]["sources"]:
            found |= self.files(source)
        return found

    def _items(self, plural: str, name: str, source: Object) -> dict[str, bytes]:
        optional = source.get("optional", False)
        data = self.data(plural, name, optional=optional)
        if not source.get("items"):
            return data
        missing = [item["key"] for item in source["items"] if item["key"] not in data]
        if missing and not optional:
            raise SourceError(f"{plural} {self.namespace}/{name} references non-existent config key: {missing[0]}")
        return {item["path"]: data[item["key"]] for item in source["items"] if item["key"] in data}

    def token(self, wanted: Object) -> str:
        """Return a token of the pod's account, bound to the pod: it ends with it. It is not renewed."""
        meta, account = self.pod["metadata"], self.pod["spec"].get("serviceAccountName", "default")
        request: Object = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "audiences": [wanted["audience"]] if wanted.get("audience") else None,
                "expirationSeconds": wanted.get("expirationSeconds", 3600),
                "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"]},
            },
        }
        path = f"/api/v1/namespaces/{self.namespace}/serviceaccounts/{account}/token"
        try:
            return str(self.client.json("POST", path, request)["status"]["token"])
        except (ApiError, OSError) as error:
            raise SourceError(str(error)) from error


def resource(reference: Object, container: Object) -> str:
    """Return a limit or request of the container, divided and rounded up as a resourceFieldRef says."""
    kind, _, name = reference["resource"].partition(".")
    resources = container.get("resources", {})
    text = resources.get(kind, {}).get(name) or resources.get("limits", {}).get(name, "0")
    value = quantity(text) / quantity(reference.get("divisor") or "1")
    return str(-(-value.numerator // value.denominator))


def quantity(text: str) -> Fraction:
    """Return the number that a quantity is: 1500m, 2Gi."""
    found = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(text))
    assert found is not None, text
    return Fraction(found[1]) * FACTORS[found[2]]
