"""Which cluster is meant: kubeconfigs, contexts, pods, and what is wrong with each."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from fake_api import kubeconfig

pytest.importorskip("kubernetes", reason="the kubernetes extra is not installed")

from fullft_cluster.errors import FullftError, SchedulerError, UsageError
from fullft_cluster.kubernetes_api import connect
from fullft_cluster.kubernetes_api.connection import default_namespace


def write(path: Path, config: Any) -> Path:
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    return path


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)


def use(monkeypatch: pytest.MonkeyPatch, *paths: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", os.pathsep.join(map(str, paths)))


def test_the_current_context_or_the_one_that_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, write(tmp_path / "k", kubeconfig("http://127.0.0.1:1", namespace="ml")))
    api = connect()
    assert (api.host, api.context, api.namespace) == ("http://127.0.0.1:1", "here", "ml")
    assert connect("there").namespace == "elsewhere"
    assert (default_namespace(), default_namespace("there")) == ("ml", "elsewhere")


def test_of_several_files_the_first_current_context_counts_as_for_kubectl(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = kubeconfig("http://127.0.0.1:1")
    other = kubeconfig("http://127.0.0.1:2")
    other["clusters"][0]["name"] = "d"
    other["contexts"] = [{"name": "production", "context": {"cluster": "d", "user": "u"}}]
    other["current-context"] = "production"
    paths = write(tmp_path / "a", first), write(tmp_path / "b", other)
    use(monkeypatch, tmp_path / "missing", *paths)
    assert connect().host == "http://127.0.0.1:1"
    assert connect("production").host == "http://127.0.0.1:2"


def test_the_usual_place(tmp_path: Path) -> None:
    (tmp_path / ".kube").mkdir()
    write(tmp_path / ".kube" / "config", kubeconfig("http://127.0.0.1:3"))
    assert connect().host == "http://127.0.0.1:3"


def test_no_kubeconfig(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(SchedulerError, match=r"no cluster is configured: there is no kubeconfig at ~/.kube/config"):
        connect()
    use(monkeypatch, tmp_path / "missing")
    with pytest.raises(SchedulerError, match=r"no kubeconfig at .*missing.*Set KUBECONFIG"):
        connect()
    with pytest.raises(UsageError, match="no context 'x': there is no kubeconfig"):
        connect("x")
    assert default_namespace() is None


def test_a_context_that_is_not_there_names_those_that_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, write(tmp_path / "k", kubeconfig("http://127.0.0.1:1")))
    with pytest.raises(UsageError, match=r"--context: no context 'hare' in the kubeconfig. Did you mean 'here'\?"):
        connect("hare")
    with pytest.raises(UsageError, match=r"Known: here, there\."):
        connect("production")


def test_no_current_context(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = kubeconfig("http://127.0.0.1:1")
    for current in ({}, {"current-context": ""}):
        use(
            monkeypatch,
            write(tmp_path / "k", {key: v for key, v in config.items() if key != "current-context"} | current),
        )
        with pytest.raises(UsageError, match=r"has no current context. Give one of: here, there\."):
            connect()
    assert connect("there").namespace == "elsewhere"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "a: [b",
        "- 1\n- 2\n",
        "just words",
        '{"contexts": 5, "current-context": "x"}',
        '{"contexts": [{"context": {}}], "current-context": "x"}',
        "contexts: [\x00]",
    ],
)
def test_a_broken_kubeconfig_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    use(monkeypatch, write(tmp_path / "k", text))
    with pytest.raises(SchedulerError, match=r"k: is no usable kubeconfig: .*kubectl config view"):
        connect()


@pytest.mark.parametrize(
    "change",
    [
        {"clusters": []},
        {"clusters": [{"name": "c", "cluster": {}}]},
        {"contexts": [{"name": "here", "context": {"cluster": "missing", "user": "u"}}]},
        {"clusters": [{"name": "c", "cluster": {"server": "https://x", "certificate-authority": "/nowhere/ca.crt"}}]},
    ],
)
def test_a_kubeconfig_that_leads_nowhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: dict[str, Any]
) -> None:
    use(monkeypatch, write(tmp_path / "k", kubeconfig("http://127.0.0.1:1") | change))
    with pytest.raises(FullftError) as caught:
        connect()
    assert caught.value.exit_code == 4
    assert "is no usable kubeconfig" in str(caught.value)


def test_a_directory_instead_of_a_kubeconfig(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, tmp_path)
    with pytest.raises(SchedulerError, match="no usable kubeconfig"):
        connect()
