"""The values of the manifests: computed from the plan, and refused before anything is made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kubernetes_scenarios import IMAGE, KINDS, RUN_DIR, SCENARIOS, rendered
from manifest_schemas import documents

from fullft_cluster.config import KubernetesKind
from fullft_cluster.config_load import resolve
from fullft_cluster.errors import UsageError
from fullft_cluster.kubernetes_job import kubernetes_notes
from fullft_cluster.kubernetes_names import check_object_name, longest_name, object_name, toleration
from fullft_cluster.road import to_job

PLAIN = SCENARIOS["processes"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image", None),
        ("image", "example/fullft"),
        ("image", "registry.example.org:5000/fullft"),
        ("image", "Example/Fullft:1"),
        ("image", "a b:1"),
        ("image", "x" * 5000 + ":1"),
        ("namespace", "Team"),
        ("namespace", "a.b"),
        ("claim", "my_claim"),
        ("queue", "a" * 64),
        ("image_pull_secrets", ["ok", "not ok"]),
        ("hf_token_secret", "hf_abcDEF"),
        ("node_selector", {"nvidia.com/gpu.product": "A100 80GB"}),
        ("node_selector", {"a/b/c": "x"}),
        ("tolerations", ["spot"]),
        ("tolerations", ["spot:Never"]),
        ("tolerations", ["a=b c:NoSchedule"]),
        ("shm_size", "lots"),
        ("shm_size", "0"),
        ("memory", "-1Gi"),
        ("storage_size", "1 TB"),
        ("host_path", "runs"),
        ("host_path", "/shared/../etc"),
        ("nfs", "/export"),
        ("mount_path", "/elsewhere"),
        ("mount_path", "/shared:ro"),
        ("mount_path", "/"),
        ("rdma_resource", "rdma/"),
        ("topology_key", "a rack"),
        ("python", "python3\n"),
        ("env", {"A B": "x"}),
        ("env", {"X": "a\nb"}),
        ("env", {"HF_TOKEN": "hf_sentinel"}),
        ("env", {"MASTER_ADDR": "localhost"}),
        ("env", {"RANK": "0"}),
    ],
)
def test_what_the_server_would_not_take_is_refused(key: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"kubernetes\.{key}") as caught:
        rendered({**PLAIN, f"kubernetes.{key}": value})
    assert "hf_sentinel" not in str(caught.value)


def test_all_problems_are_told_at_once() -> None:
    flags = {**PLAIN, "kubernetes.image": "x", "kubernetes.namespace": "X", "kubernetes.shm_size": "x"}
    with pytest.raises(UsageError) as caught:
        rendered(flags, run_dir=RUN_DIR.with_name("Not_A_Name"))
    assert len(caught.value.problems) == 4
    assert all(problem.fix for problem in caught.value.problems)


@pytest.mark.parametrize("given", [("claim", "host_path"), ("host_path", "nfs"), ("claim", "storage_size")])
def test_one_volume_is_enough(given: tuple[str, str]) -> None:
    values = {"claim": "runs", "host_path": "/lustre", "nfs": "server:/export", "storage_size": "1Ti"}
    with pytest.raises(UsageError, match="kubernetes: "):
        rendered({**PLAIN, **{f"kubernetes.{key}": values[key] for key in given}})


@pytest.mark.parametrize("image", [IMAGE, "fullft:1", "localhost:5000/a/b:v1.2_3", "a/b@sha256:" + "0" * 64])
def test_images_with_a_tag_or_a_digest(image: str) -> None:
    assert f'image: "{image}"' in rendered({**PLAIN, "kubernetes.image": image})[0].script


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nodes", [1, 4, 11, 1000])
def test_the_longest_name_leaves_room_for_what_the_pods_add(kind: KubernetesKind, nodes: int) -> None:
    name = "a" * longest_name(kind, nodes)
    last = nodes - 1
    pods = {
        "pytorchjob": f"{name}-worker-{last}",
        "trainjob": f"{name}-node-0-{last}-xxxxx",
        "jobset": f"{name}-node-0-{last}-xxxxx",
        "job": f"{name}-{last}-xxxxx",
    }
    made = {len(pods[kind]), len(f"{name}-prepare-xxxxx"), len(f"{name}-supervisor-xxxxx")}
    assert max(made) == 63
    check_object_name(name, kind, nodes)
    with pytest.raises(UsageError, match="characters"):
        check_object_name(name + "a", kind, nodes)


@pytest.mark.parametrize("name", ["7b", "Run", "a_b", "a.b", "a-", "-a", "ä", "x" * 64])
def test_a_name_that_is_none_gets_one_that_is(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_object_name(name, "pytorchjob", 2)
    suggestion = caught.value.problems[0].fix.rpartition("--name ")[2].rstrip(".")
    assert check_object_name(suggestion, "pytorchjob", 2) == suggestion


def test_object_name_of_nothing() -> None:
    assert object_name("???", 20) == "run"


def test_tolerations() -> None:
    assert toleration("a.b/c=d:NoSchedule") == {
        "key": "a.b/c",
        "operator": "Equal",
        "value": "d",
        "effect": "NoSchedule",
    }
    assert toleration("spot:NoExecute") == {"key": "spot", "operator": "Exists", "effect": "NoExecute"}


def environment(**flags: Any) -> dict[str, str]:
    job = documents(rendered({**SCENARIOS["host-path"], **flags}, "jobset")[0].files["job.yaml"])[0]
    pod = job["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    return {item["name"]: item["value"] for item in pod["containers"][0]["env"] if "value" in item}


@pytest.mark.parametrize(
    ("resource", "expected"),
    [
        (None, {"NCCL_NET": "Socket"}),
        ("rdma/ib", {"NCCL_NET": "IB"}),
        ("nvidia.com/hostdev", {"NCCL_NET": "IB"}),
        ("vpc.amazonaws.com/efa", {"FI_PROVIDER": "efa", "FI_EFA_USE_DEVICE_RDMA": "1"}),
    ],
)
def test_nccl_is_pinned_to_the_network_that_was_asked_for(resource: str | None, expected: dict[str, str]) -> None:
    env = environment(**{"kubernetes.rdma_resource": resource})
    pinned = {k: v for k, v in env.items() if k.startswith("FI_") or k == "NCCL_NET"}
    assert pinned == expected


def test_the_jobs_environment_is_over_the_profiles_and_that_over_ours() -> None:
    flags = {**SCENARIOS["host-path"], "kubernetes.env": {"NCCL_DEBUG": "INFO"}}
    result, _ = rendered(flags, "jobset", env={"NCCL_DEBUG": "TRACE", "NCCL_NET": "Mine"})
    assert '{"name": "NCCL_DEBUG", "value": "INFO"}' in result.script
    assert '{"name": "NCCL_NET", "value": "Mine"}' in result.script


def test_memory_is_the_hosts_and_the_shared_but_no_more_than_a_node_has() -> None:
    def memory(shm: str) -> str:
        flags = {**SCENARIOS["own-claim"], "kubernetes.shm_size": shm}
        job = documents(rendered(flags)[0].files["job.yaml"])[0]
        pod = job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
        return str(pod["containers"][0]["resources"]["limits"]["memory"])

    gib = int(memory("1Gi").removesuffix("Gi")) - 1
    assert memory("16Gi") == f"{gib + 16}Gi"
    assert memory("1G") == f"{gib + 1}Gi"
    assert memory("10Ti") == "1036Gi"


def test_what_the_pods_may_not_see_is_told(tmp_path: Path) -> None:
    data = tmp_path / "train.jsonl"
    data.write_text('{"text": "hello"}\n')
    flags = {**PLAIN, "backend": "kubernetes", "data.train": str(data), "output.runs_dir": str(tmp_path / "runs")}
    ready = to_job(resolve(flags, [], None), {}, weights_must_exist=False)
    assert ready.job.name == "tiny-train" and ready.run_dir == tmp_path / "runs" / "tiny-train"
    assert any("data.train" in note and "not below" in note for note in ready.notes)
    assert any("claim of its own" in note for note in ready.notes)
    assert not any("SLURM" in note or "--time" in note for note in ready.notes)
    beside = resolve({**flags, "output.runs_dir": str(tmp_path), "kubernetes.claim": "runs"}, [], None)
    assert kubernetes_notes(beside.config, beside.cluster, 1) == []
    assert "kubernetes.queue" in kubernetes_notes(beside.config, beside.cluster, 2)[0]
    gang = resolve(
        {**flags, "output.runs_dir": str(tmp_path), "kubernetes.claim": "runs", "kubernetes.gang": "volcano"}, [], None
    )
    assert kubernetes_notes(gang.config, gang.cluster, 2) == []


def test_a_name_that_we_make_is_one_in_kubernetes(tmp_path: Path) -> None:
    data = tmp_path / "My Data_v1.jsonl"
    data.write_text('{"text": "hello"}\n')
    flags = {**SCENARIOS["own-claim"], "backend": "kubernetes", "data.train": str(data)}
    flags |= {"output.runs_dir": str(tmp_path), "weights": "example/weights"}
    assert to_job(resolve(flags, [], None), {}, weights_must_exist=False).job.name == "run-7b-my-data-v1"


def test_the_commands(tmp_path: Path) -> None:
    """`render -o` writes a directory and needs no cluster; `submit` says that there is none, and leaves nothing."""
    data = tmp_path / "train.jsonl"
    data.write_text('{"text": "hello"}\n')
    arguments = ["--backend", "kubernetes", "--model", "tiny", "--cluster", "local", "--data", str(data)]
    arguments += ["--image", IMAGE, "--kind", "jobset", "--namespace", "nlp", "--runs-dir", str(tmp_path / "runs")]
    nowhere = {name: value for name, value in os.environ.items() if not name.startswith("KUBE")}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fullft_cluster", *words, *arguments]
        env = {**nowhere, "HOME": str(tmp_path)}
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=env)

    done = run("render", "-o", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    written = {path.name for path in (tmp_path / "out").iterdir()}
    manifests = {"storage.yaml", "companions.yaml", "prepare.yaml", "supervisor.yaml", "job.yaml", "kustomization.yaml"}
    assert written == manifests | {"config.yaml", "plan.json", "deepspeed.json"}
    job = documents((tmp_path / "out" / "job.yaml").read_text())[0]
    assert (job["kind"], job["metadata"]["namespace"]) == ("JobSet", "nlp")
    refused = run("submit", "--json")
    assert refused.returncode == 4
    assert "no cluster is configured" in refused.stderr and "KUBECONFIG" in refused.stderr
    assert json.loads(refused.stdout)["error"]["exit_code"] == 4
    assert not (tmp_path / "runs").exists()
