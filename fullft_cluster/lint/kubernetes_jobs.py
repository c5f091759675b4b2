"""Rules about Kubernetes' jobs and the operators' ones: what counts as success, what restarts, and how often."""

from __future__ import annotations

import re
from collections.abc import Iterator

from fullft_cluster.lint.nouns import Hit, Rule, quoted
from fullft_cluster.lint.workload import Pods, Workload

_TRAINER = "https://github.com/kubeflow/trainer/issues"
_QUEUES = (
    "kueue.x-k8s.io/queue-name",
    "scheduling.x-k8s.io/pod-group",
    "scheduling.k8s.io/group-name",
    "scheduling.volcano.sh/queue-name",
    "kai.scheduler/queue",
)


def _restart_policy(job: Workload, pods: Pods) -> tuple[str, int]:
    """Return the restart policy of a role and its line; the operator takes OnFailure where there is none."""
    owner = pods.owner if job.has_replica_specs else pods.spec
    return owner.value("restartPolicy") or "OnFailure", owner.key_line("restartPolicy")


def _master_decides(job: Workload) -> Iterator[Hit]:
    workers = [pods for pods in job.pods if pods.role == "Worker" and pods.count]
    if job.is_pytorchjob and workers and any(pods.role == "Master" for pods in job.pods):
        yield Hit(job.kind_line, f"a PyTorchJob with workers ({workers[0].count}) succeeds when its master does")


def _exit_code(job: Workload) -> Iterator[Hit]:
    for pods in job.pods if job.has_replica_specs else ():
        policy, line = _restart_policy(job, pods)
        if policy == "ExitCode":
            yield Hit(line, f"restartPolicy: ExitCode of {quoted(pods.role)}")


def _restarts_alone(job: Workload) -> Iterator[Hit]:
    if job.total < 2 or job.tree.get("spec", "elasticPolicy"):  # there torchrun makes a new world of who is left
        return
    for pods in job.pods:
        policy, line = _restart_policy(job, pods)
        one_world = job.has_replica_specs or (job.kind in ("Job", "JobSet") and pods.gpus and pods.count > 1)
        by_itself = policy in ("OnFailure", "Always") or (job.has_replica_specs and policy == "ExitCode")
        if one_world and by_itself:
            yield Hit(line, f"a pod of {quoted(pods.role)} is restarted alone ({policy})")


def _backoff_sum(job: Workload) -> Iterator[Hit]:
    limit = job.tree.get("spec", "runPolicy", "backoffLimit")
    count = limit.number if limit else None
    if not (limit and count and job.has_replica_specs and job.total > 1) or job.tree.get("spec", "elasticPolicy"):
        return
    if count % job.total and any(_restart_policy(job, pods)[0] in ("OnFailure", "Always") for pods in job.pods):
        restarts = count // job.total
        yield Hit(limit.line, f"backoffLimit {count} over {job.total} pods is {restarts} restarts of them all")


def _child_backoff(job: Workload) -> Iterator[Hit]:
    if job.kind not in ("JobSet", "TrainingRuntime", "ClusterTrainingRuntime"):
        return
    several = job.total > 1 or job.kind != "JobSet"  # a TrainJob may ask its runtime for more nodes
    for pods in job.pods:
        limit = pods.owner.get("backoffLimit")
        if several and (pods.gpus or pods.trainer or job.kind == "JobSet") and (limit is None or limit.number != 0):
            line = pods.owner.key_line("backoffLimit") if limit else pods.owner.line
            yield Hit(
                line, f"backoffLimit of {quoted(pods.role)} is {limit.text if limit else '6 (the default)'}"[:120]
            )


def _rank_is_replica(job: Workload) -> Iterator[Hit]:
    processes = job.tree.value("spec", "nprocPerNode")
    if not job.is_pytorchjob or processes in ("", "1"):
        return
    for pods in job.pods:
        for container in pods.containers:
            command = container.command
            if re.search(r"(?<![a-z_-])(?:--)?rank[= ]+[\"']?\$[({]?RANK\b", command):
                yield Hit(container.command_line(), "RANK is taken for the rank of a process")
            if re.search(r"--nnodes[= ]+[\"']?\$[({]?WORLD_SIZE\b", command):
                yield Hit(container.command_line(), "WORLD_SIZE is taken for the number of nodes")


def _ttl_restarts(job: Workload) -> Iterator[Hit]:
    if job.kind not in ("TrainingRuntime", "ClusterTrainingRuntime"):
        return
    ttl = job.tree.get("spec", "template", "spec", "ttlSecondsAfterFinished")
    restarts = job.tree.get("spec", "template", "spec", "failurePolicy", "maxRestarts")
    if ttl and restarts and restarts.number:
        yield Hit(ttl.line, f"ttlSecondsAfterFinished with {restarts.number} restarts")


def _no_gang(job: Workload) -> Iterator[Hit]:
    if job.kind == "TrainJob":
        yield from _train_job_gang(job)
        return
    pods = job.training_pods()
    if sum(part.count for part in pods) < 2 or job.group == "batch.volcano.sh" or "TrainingRuntime" in job.kind:
        return
    policy = job.tree.get("spec", "runPolicy", "schedulingPolicy", "minAvailable")
    if not (job.label(*_QUEUES) or _in_gang(pods) or policy):
        yield Hit(
            job.kind_line, f"{sum(part.count for part in pods)} pods with GPUs and nothing that starts them together"
        )


def _in_gang(pods: list[Pods]) -> bool:
    """Return whether pods name a scheduler of their own, or a group."""
    scheduled = any(part.spec.value("schedulerName") not in ("", "default-scheduler") for part in pods)
    places = [(part, where) for part in pods for where in ("labels", "annotations")]
    return scheduled or any(part.template.value("metadata", where, name) for part, where in places for name in _QUEUES)


def _train_job_gang(job: Workload) -> Iterator[Hit]:
    """Judge a TrainJob where its runtime is in the same file; elsewhere the gang may be the runtime's."""
    nodes = job.tree.get("spec", "trainer", "numNodes")
    wanted = job.tree.value("spec", "runtimeRef", "name")
    for tree in job.siblings:
        same = tree.value("metadata", "name") == wanted and tree.value("kind").endswith("TrainingRuntime")
        if not (same and nodes and (nodes.number or 0) > 1) or job.label(*_QUEUES):
            continue
        if not (tree.get("spec", "podGroupPolicy") or _in_gang(Workload(tree, job.path).pods)):
            yield Hit(nodes.line, f"{nodes.number} nodes and nothing that starts them together")


RULES: tuple[Rule[Workload], ...] = (
    Rule(
        "k8s-master-decides",
        "Training operator v1 looks at the master alone: a worker that was evicted or failed late leaves a job that "
        "says Succeeded.",
        "Use a TrainJob or JobSet, or have the master exit 0 only after every worker committed its part (and ignore "
        "this).",
        "https://github.com/kubedl-io/kubedl/issues/81",
        _master_decides,
    ),
    Rule(
        "k8s-exit-code-policy",
        "ExitCode ends the job for good at every code from 1 to 127 (75, try again, too), and restarts without limit "
        "from 128 on: 137, out of memory, for ever, whatever backoffLimit says.",
        "Use restartPolicy: Never and restart the whole job, or a JobSet with failurePolicy and podFailurePolicy.",
        f"{_TRAINER}/2045",
        _exit_code,
    ),
    Rule(
        "k8s-restarts-alone",
        "One pod comes back and the others go on: the world has lost a member and hangs in its next collective.",
        "Use restartPolicy: Never with a JobSet or TrainJob, whose failurePolicy restarts all pods together.",
        f"{_TRAINER}/2269",
        _restarts_alone,
    ),
    Rule(
        "k8s-backoff-sum",
        "backoffLimit counts restarts over all replicas, and when one fails they all do: k restarts of n pods need n "
        "x k.",
        "Set backoffLimit to the number of pods times the restarts that you want.",
        "https://github.com/kubeflow/pytorch-operator/issues/270",
        _backoff_sum,
    ),
    Rule(
        "k8s-child-backoff",
        "With a backoffLimit the Job replaces a failed pod by itself, that often, before the JobSet hears of it: the "
        "other pods hang meanwhile.",
        "Write backoffLimit: 0 in every replicated job.",
        "https://github.com/kubernetes-sigs/jobset/blob/release-0.5/examples/simple/max-restarts.yaml",
        _child_backoff,
    ),
    Rule(
        "k8s-rank-is-replica",
        "Training operator v1 sets RANK to the index of the pod and WORLD_SIZE to pods x nprocPerNode: with several "
        "processes a pod, RANK is no process's rank and WORLD_SIZE no number of nodes.",
        "Start torchrun without ranks: it reads PET_NNODES, PET_NODE_RANK and PET_NPROC_PER_NODE, which are set too.",
        f"{_TRAINER}/1790",
        _rank_is_replica,
    ),
    Rule(
        "k8s-ttl-restarts",
        "When the failed JobSet is cleaned up by its TTL, the TrainJob makes a new one whose restart count begins at "
        "0: it never ends (until kubeflow/trainer#3891).",
        "Leave ttlSecondsAfterFinished out and delete the TrainJob.",
        f"{_TRAINER}/3779",
        _ttl_restarts,
    ),
    Rule(
        "k8s-no-gang",
        "Pods are placed one by one: two jobs that each got half of the GPUs wait for each other for ever.",
        "Give it a queue (label kueue.x-k8s.io/queue-name), or a gang scheduler's schedulerName and pod group.",
        "https://www.kubeflow.org/docs/components/trainer/legacy-v1/user-guides/job-scheduling/",
        _no_gang,
    ),
)
