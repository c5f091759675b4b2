"""Kubernetes as fixtures: a control plane to be looked at, and a cluster to run things on. Each is started once."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import kube_assets
import kube_lab
import kube_nodes
import pytest
from kube_lab import Lab
from kube_plane import ControlPlane
from kube_run import Place, Run

from fullft_cluster.resources import share

NODES = 10_000
CLUSTERS = pytest.StashKey[Lab]()


def require(reason: str | None) -> None:
    """Skip for that reason, if any; an error where nothing must be missing (FULLFT_CLUSTER_REQUIRE_KUBERNETES=1)."""
    if reason and os.environ.get("FULLFT_CLUSTER_REQUIRE_KUBERNETES") == "1":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def big_plane() -> Iterator[ControlPlane]:
    """A control plane that knows 10,000 nodes, to be looked at only (20 s, most of it to create the nodes)."""
    assets = kube_assets.find()
    require(assets if isinstance(assets, str) else None)
    assert not isinstance(assets, str)
    plane = ControlPlane(assets)
    try:
        plane.up()
        plane.post("/api/v1/nodes", list(kube_nodes.nodes(NODES)))
        yield plane
    finally:
        plane.down()


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A cluster with controllers, all operators, and nodes whose pods are processes of this machine (10 s)."""
    operators = tuple(kube_assets.OPERATORS)
    require(kube_lab.missing(operators))
    cluster = Lab(operators)
    request.config.stash[CLUSTERS] = cluster
    cluster.failed = True  # until it is up
    try:
        cluster.up()
        cluster.failed = False
        yield cluster
    finally:
        cluster.down()


@pytest.fixture(scope="session")
def place(lab: Lab) -> Iterator[Place]:
    """The volume, which belongs to the user of the pods, and text to train on."""
    with tempfile.TemporaryDirectory(prefix="volume") as name:  # pytest's own directories are root's alone
        directory = Path(name)
        directory.chmod(0o755)
        place = Place(lab, directory, directory / "runs" / "train.jsonl")
        text = (share("configs") / "sample" / "train.jsonl").read_text().splitlines(keepends=True)
        place.data.write_text("".join(text[:300]))
        os.chown(place.runs, 1000, 1000)
        yield place


@pytest.fixture(scope="session")
def undisturbed(lab: Lab, place: Place) -> Run:
    """A run that nobody disturbs, whose weights the others have to have."""
    with lab.namespace() as namespace:
        run = place.apply("job", namespace, "undisturbed")
        run.finish()
        assert [line["cause"] for line in run.attempts] == ["done"]
    return run


@pytest.fixture
def namespace(lab: Lab) -> Iterator[str]:
    """A fresh namespace that the user `user` may use; all nodes are well again at its end."""
    with lab.namespace() as name:
        yield name


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """If a test fails that uses the cluster, say what is in its namespace and where the logs are, and keep them."""
    report = yield
    cluster = item.config.stash.get(CLUSTERS, None)
    if report.failed and cluster is not None and "lab" in getattr(item, "fixturenames", ()):
        cluster.failed = True
        said = f"logs: {cluster.directory} (pods: kubelet/pods)"
        if report.when == "call" and (name := getattr(item, "funcargs", {}).get("namespace")):
            shown = cluster.kubectl("get", "all,pvc,events", "--output=wide", namespace=name)
            said += f"\n{shown.stdout}{shown.stderr}"
        report.sections.append(("Kubernetes", said))
    return report
