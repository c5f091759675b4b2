"""Runs on Kubernetes that are rendered in tests: what they are asked for, and what comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from manifest_schemas import documents
from msgspec.structs import replace

from fullft_cluster.config_load import Resolved, resolve
from fullft_cluster.job import Job, make_job
from fullft_cluster.model import load_model
from fullft_cluster.plan import Plan
from fullft_cluster.planner import Data, make_plan
from fullft_cluster.render import Rendered, render

KINDS = ("pytorchjob", "trainjob", "jobset", "job")
RUN_DIR = Path("/shared/runs/example")
IMAGE = "registry.example.org/nlp/fullft-cluster:0.1.0"
SCENARIOS: dict[str, dict[str, Any]] = {
    "processes": {"model": "tiny", "cluster": "local", "train.max_steps": 50, "kubernetes.image": IMAGE},
    "two-nodes-efa": {
        "model": "13b",
        "resources.nodes": 2,
        "kubernetes.image": f"example/fullft@sha256:{'0' * 64}",
        "kubernetes.claim": "shared-runs",
        "kubernetes.service_account": "trainer",
        "kubernetes.rdma_resource": "vpc.amazonaws.com/efa",
        "kubernetes.rdma_count": 4,
        "kubernetes.hf_token_secret": "hub",
        "kubernetes.env": {"WANDB_PROJECT": 'it\'s 100 % "ours": $(HF_TOKEN) & {{ more }}'},
    },
    "four-nodes": {
        "model": "65b",
        "resources.nodes": 4,
        "kubernetes.image": IMAGE,
        "kubernetes.namespace": "nlp",
        "kubernetes.image_pull_secrets": ["registry"],
        "kubernetes.nfs": "nfs.example.org:/export/runs",
        "kubernetes.queue": "research",
        "kubernetes.queue_priority": "high",
        "kubernetes.priority_class": "training",
        "kubernetes.node_selector": {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"},
        "kubernetes.tolerations": ["team=nlp:NoSchedule", "spot:NoExecute"],
        "kubernetes.topology_key": "topology.kubernetes.io/rack",
        "kubernetes.rdma_resource": "rdma/hca_shared_devices_a",
        "kubernetes.hf_token_secret": "hub",
        "kubernetes.wandb_secret": "wandb",
        "kubernetes.shm_size": "16Gi",
    },
    "host-path": {
        "model": "7b",
        "resources.nodes": 2,
        "kubernetes.image": IMAGE,
        "kubernetes.host_path": "/lustre/runs",
        "kubernetes.env": {"NCCL_SOCKET_IFNAME": "eth0"},
    },
    "volcano": {
        "model": "7b",
        "resources.nodes": 2,
        "kubernetes.image": IMAGE,
        "kubernetes.claim": "shared-runs",
        "kubernetes.gang": "volcano",
        "kubernetes.volcano_queue": "research",
        "kubernetes.priority_class": "training",
        "kubernetes.active_deadline": "36h",
        "kubernetes.egress_ports": [3128],
    },
    "coscheduling": {
        "model": "7b",
        "resources.nodes": 2,
        "kubernetes.image": IMAGE,
        "kubernetes.claim": "shared-runs",
        "kubernetes.gang": "coscheduling",
        "kubernetes.scheduler_name": "gang-scheduler",
        "kubernetes.active_deadline": "none",
    },
    "own-claim": {
        "model": "7b",
        "resources.gpus": 8,
        "kubernetes.image": IMAGE,
        "kubernetes.storage_class": "filestore",
        "kubernetes.storage_size": "2Ti",
    },
}


PLANS: dict[str, Plan] = {}
"""By what they are made of: the section `kubernetes` decides nothing of them."""


def job_of(flags: dict[str, Any], kind: str, run_dir: Path = RUN_DIR, **cluster: Any) -> tuple[Job, Plan]:
    given = {**flags, "backend": "kubernetes", "kubernetes.kind": kind}
    resolved = resolve(given, [], None)
    resolved = Resolved(resolved.config, replace(resolved.cluster, **cluster), resolved.origins)
    key = repr({name: value for name, value in flags.items() if not name.startswith("kubernetes.")})
    if key not in PLANS:
        PLANS[key] = make_plan(resolved.config, load_model(flags["model"]), resolved.cluster, Data(rows=5000))
    plan = PLANS[key]
    return make_job(resolved, plan, run_dir, "/not/used"), plan


def rendered(
    flags: dict[str, Any], kind: str = "pytorchjob", run_dir: Path = RUN_DIR, **cluster: Any
) -> tuple[Rendered, Plan]:
    job, plan = job_of(flags, kind, run_dir, **cluster)
    return render(job), plan


def objects(name: str, kind: str = "pytorchjob") -> dict[str, dict[str, Any]]:
    return {item["kind"]: item for item in documents(rendered(SCENARIOS[name], kind)[0].files["job.yaml"])}


def worker(name: str, kind: str) -> dict[str, Any]:
    """The pod template of the first node."""
    own = {"pytorchjob": "PyTorchJob", "trainjob": "TrainingRuntime", "jobset": "JobSet", "job": "Job"}
    item = objects(name, kind)[own[kind]]
    spec = item["spec"]
    if kind == "pytorchjob":
        return dict(spec["pytorchReplicaSpecs"]["Master"]["template"])
    if kind == "trainjob":
        spec = spec["template"]["spec"]
    if kind in ("trainjob", "jobset"):
        spec = spec["replicatedJobs"][0]["template"]["spec"]
    return dict(spec["template"])
