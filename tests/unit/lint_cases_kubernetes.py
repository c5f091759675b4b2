"""For each rule about Kubernetes manifests a text with its trap, `HERE` in the line of the finding, and a text without."""

# ruff: noqa: E501  # a case reads best on a line

from __future__ import annotations

from lint_cases import FAKE, replaced

POD = """\
      terminationGracePeriodSeconds: 600
      restartPolicy: Never
      nodeSelector: {nvidia.com/gpu.product: NVIDIA-A100-SXM4-80GB}
      tolerations:
      - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 30}
      securityContext: {runAsNonRoot: true, runAsUser: 1000}
      containers:
      - name: pytorch
        image: registry.example:5000/team/train:1.2
        command: [torchrun, train.py, --output_dir=/runs/a]
        env:
        - {name: NCCL_DEBUG, value: WARN}
        - name: HF_TOKEN
          valueFrom: {secretKeyRef: {name: hub, key: token}}
        resources:
          limits: {nvidia.com/gpu: 8, cpu: 96}
          requests: {nvidia.com/gpu: 8}
        volumeMounts:
        - {name: shm, mountPath: /dev/shm}
        - {name: runs, mountPath: /runs}
      volumes:
      - name: shm
        emptyDir: {medium: Memory}
      - name: runs
        persistentVolumeClaim: {claimName: runs}
"""
JOB = f"""\
apiVersion: batch/v1
kind: Job
metadata:
  name: train
  labels: {{kueue.x-k8s.io/queue-name: team}}
spec:
  completionMode: Indexed
  completions: 4
  parallelism: 4
  backoffLimit: 0
  template:
    spec:
{POD}"""
"""An Indexed Job without a trap."""


def _indent(text: str, by: int) -> str:
    return "".join(f"{' ' * by}{line}\n" for line in text.splitlines())


def _role(name: str, count: int) -> str:
    return (
        f"    {name}:\n      replicas: {count}\n      restartPolicy: Never\n      template:\n        spec:\n"
        + _indent(POD.replace("      restartPolicy: Never\n", ""), 4)
    )


PYTORCH = (
    (
        "apiVersion: kubeflow.org/v1\n"
        "# lint: ignore k8s-master-decides\n"
        "kind: PyTorchJob\n"
        "metadata:\n  name: train\n  labels: {kueue.x-k8s.io/queue-name: team}\n"
        'spec:\n  nprocPerNode: "8"\n  runPolicy:\n    backoffLimit: 8\n  pytorchReplicaSpecs:\n'
    )
    + _role("Master", 1)
    + _role("Worker", 3)
)
JOBSET = """\
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: train
  labels: {kueue.x-k8s.io/queue-name: team}
spec:
  failurePolicy: {maxRestarts: 3}
  replicatedJobs:
  - name: node
    template:
      spec:
        backoffLimit: 0
        completions: 4
        parallelism: 4
        template:
          spec:
""" + _indent(POD, 6)
RUNTIME = """\
apiVersion: trainer.kubeflow.org/v1alpha1
kind: TrainJob
metadata:
  name: train
spec:
  runtimeRef: {name: torch}
  trainer:
    numNodes: 4
    image: example/train:1
---
apiVersion: trainer.kubeflow.org/v1alpha1
kind: TrainingRuntime
metadata:
  name: torch
spec:
  podGroupPolicy: {coscheduling: {scheduleTimeoutSeconds: 60}}
  template:
    spec:
      failurePolicy: {maxRestarts: 3}
      replicatedJobs:
      - name: node
        template:
          spec:
            backoffLimit: 0
            template:
              spec:
""" + _indent(POD, 10)


GPUS = "          limits: {nvidia.com/gpu: 8, cpu: 96}\n          requests: {nvidia.com/gpu: 8}\n"
LABEL = "  labels: {kueue.x-k8s.io/queue-name: team}\n"
DEBUG = "- {name: NCCL_DEBUG, value: WARN}"
UNREACHABLE = "- {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 30}"
GRACE = "      terminationGracePeriodSeconds: 600\n"
SHM = "        - {name: shm, mountPath: /dev/shm}\n"
SECURITY = "securityContext: {runAsNonRoot: true, runAsUser: 1000}"
IMAGE = "registry.example:5000/team/train:1.2"
COMMAND = "command: [torchrun, train.py, --output_dir=/runs/a]"
CLAIM = "persistentVolumeClaim: {claimName: runs}"

KUBERNETES: list[tuple[str, str, str]] = [
    ("k8s-master-decides", replaced(PYTORCH, ("# lint: ignore k8s-master-decides\n", ""), ("PyTorchJob", "PyTorchJob # HERE")),
     PYTORCH),
    ("k8s-exit-code-policy", PYTORCH.replace("restartPolicy: Never", "restartPolicy: ExitCode # HERE", 1), PYTORCH),
    ("k8s-restarts-alone", PYTORCH.replace("restartPolicy: Never", "restartPolicy: OnFailure # HERE", 1), PYTORCH),
    ("k8s-restarts-alone", PYTORCH.replace("restartPolicy: Never", "restartPolicy: ExitCode # HERE", 1), PYTORCH),
    ("k8s-restarts-alone", PYTORCH.replace("Worker:\n", "Worker:\n      # without one\n").replace(
        "replicas: 3\n      restartPolicy: Never", "replicas: 3 # HERE"), JOB),
    ("k8s-restarts-alone", replaced(JOB, ("restartPolicy: Never", "restartPolicy: OnFailure # HERE")),
     replaced(JOB, ("restartPolicy: Never", "restartPolicy: OnFailure"), (": 4\n", ": 1\n"))),
    ("k8s-restarts-alone", replaced(PYTORCH, ("restartPolicy: Never", "restartPolicy: Always # HERE")),
     replaced(PYTORCH, ("restartPolicy: Never", "restartPolicy: OnFailure"), ("spec:\n  nproc", "spec:\n  elasticPolicy: {rdzvBackend: c10d}\n  nproc"))),
    ("k8s-backoff-sum", replaced(PYTORCH, ("restartPolicy: Never", "restartPolicy: OnFailure"),
                                 ("backoffLimit: 8", "backoffLimit: 3 # HERE")),
     replaced(PYTORCH, ("restartPolicy: Never", "restartPolicy: OnFailure"))),
    ("k8s-child-backoff", replaced(JOBSET, ("backoffLimit: 0", "backoffLimit: 3 # HERE")), JOBSET),
    ("k8s-child-backoff", replaced(RUNTIME, ("            backoffLimit: 0\n            template:",
                                             "            template: # HERE")), RUNTIME),
    ("k8s-rank-is-replica", replaced(PYTORCH, (COMMAND, "command: [python, train.py, --rank=$(RANK)] # HERE")),
     replaced(PYTORCH, (COMMAND, "command: [torchrun, --node_rank=$(RANK), train.py]"))),
    ("k8s-rank-is-replica", replaced(PYTORCH, (COMMAND, "args: [torchrun --nnodes $WORLD_SIZE train.py] # HERE")),
     replaced(PYTORCH, (COMMAND, "args: [python train.py --rank $RANK]"), ('"8"', '"1"'))),
    ("k8s-ttl-restarts", replaced(RUNTIME, ("{maxRestarts: 3}", "{maxRestarts: 3}\n      ttlSecondsAfterFinished: 60 # HERE")),
     replaced(JOBSET, ("{maxRestarts: 3}", "{maxRestarts: 3}\n  ttlSecondsAfterFinished: 60"))),
    ("k8s-no-gang", replaced(JOB, (LABEL, ""), ("kind: Job", "kind: Job # HERE")), JOB),
    ("k8s-no-gang", replaced(JOBSET, (LABEL, ""), ("kind: JobSet", "kind: JobSet # HERE")),
     replaced(JOB, (LABEL, ""), ("      restartPolicy", "      schedulerName: volcano\n      restartPolicy"))),
    ("k8s-no-gang", replaced(RUNTIME, ("  podGroupPolicy: {coscheduling: {scheduleTimeoutSeconds: 60}}\n", ""),
                             ("numNodes: 4", "numNodes: 4 # HERE")), RUNTIME),
    ("k8s-no-gang", replaced(RUNTIME, ("  podGroupPolicy: {coscheduling: {scheduleTimeoutSeconds: 60}}\n", ""),
                             ("numNodes: 4", "numNodes: 4 # HERE")),
     replaced(RUNTIME, ("  podGroupPolicy: {coscheduling: {scheduleTimeoutSeconds: 60}}\n", ""),
              ("              spec:\n", "              metadata: {annotations: {scheduling.k8s.io/group-name: train}}\n              spec:\n"))),
    ("k8s-shared-memory", replaced(JOB, (SHM, ""), ("- name: pytorch", "- name: pytorch # HERE")), JOB),
    ("k8s-shared-memory", replaced(JOB, ("emptyDir: {medium: Memory}", "emptyDir: {} # HERE")),
     replaced(JOB, (SHM, ""), ("nvidia.com/gpu: 8", "nvidia.com/gpu: 1"))),
    ("k8s-checkpoints-in-emptydir", replaced(JOB, (CLAIM, "emptyDir: {}"), ("mountPath: /runs}", "mountPath: /runs} # HERE")),
     JOB),
    ("k8s-checkpoints-in-emptydir", replaced(JOB, (CLAIM, "emptyDir: {}"), ("--output_dir=/runs/a", "x"),
                                             ("mountPath: /runs}", "mountPath: /checkpoints} # HERE")),
     replaced(JOB, (CLAIM, "emptyDir: {}"), ("--output_dir=/runs/a", "x"))),
    ("k8s-grace-period", replaced(JOB, ("Seconds: 600", "Seconds: 30 # HERE")), JOB),
    ("k8s-grace-period", replaced(JOB, (GRACE + "      restartPolicy: Never", "      restartPolicy: Never # HERE")),
     replaced(JOB, (GRACE, ""), (GPUS, "          limits: {cpu: 96}\n"))),
    ("k8s-unreachable-node", replaced(JOB, (UNREACHABLE, "- {key: spot, operator: Exists}"), (GRACE, "      terminationGracePeriodSeconds: 600 # HERE\n")),
     JOB),
    ("k8s-grace-period", replaced(RUNTIME, ("nvidia.com/gpu: 8", "cpu: 8"), ("Seconds: 600", "Seconds: 9 # HERE"), ("      - name: node\n        template:\n",
     "      - name: node\n        template:\n          metadata: {labels: {trainer.kubeflow.org/trainjob-ancestor-step: trainer}}\n")),
     replaced(RUNTIME, ("nvidia.com/gpu: 8", "cpu: 8"), ("Seconds: 600", "Seconds: 9"))),
    ("k8s-unreachable-node", replaced(JOB, (UNREACHABLE, "- operator: Exists # HERE")),
     replaced(JOB, (UNREACHABLE, UNREACHABLE + "\n      - {key: nvidia.com/gpu, operator: Exists}"))),
    ("k8s-gpu-limits", replaced(JOB, ("requests: {nvidia.com/gpu: 8}", "requests: {nvidia.com/gpu: 4} # HERE")), JOB),
    ("k8s-gpu-limits", replaced(JOB, ("limits: {nvidia.com/gpu: 8, cpu: 96}", "limits: {cpu: 96}"),
                                ("requests: {nvidia.com/gpu: 8}", "requests: {nvidia.com/gpu: 8} # HERE")), JOB),
    ("k8s-gpu-not-requested", replaced(JOB, (GPUS, "          limits: {cpu: 96}\n"), ("A100-SXM4-80GB}", "A100} # HERE")), JOB),
    ("k8s-gpu-not-requested", replaced(JOB, (GPUS, "          limits: {cpu: 96}\n"), ("nvidia.com/gpu.product", "x"),
                                       (DEBUG, '- {name: CUDA_VISIBLE_DEVICES, value: "0"} # HERE')),
     replaced(JOB, (GPUS, "          limits: {cpu: 96}\n"), ("nvidia.com/gpu.product", "x"),
              (DEBUG, '- {name: CUDA_VISIBLE_DEVICES, value: "-1"}'))),
    ("k8s-fabric-not-requested", replaced(JOB, (DEBUG, "- {name: NCCL_IB_HCA, value: mlx5} # HERE")), JOB),
    ("k8s-fabric-not-requested", replaced(JOB, (DEBUG, "- {name: FI_PROVIDER, value: efa} # HERE")),
     replaced(JOB, (DEBUG, "- {name: FI_PROVIDER, value: efa}"), ("cpu: 96", "vpc.amazonaws.com/efa: 4"))),
    ("k8s-privileged", replaced(JOB, ("        env:\n", "        securityContext: {privileged: true} # HERE\n        env:\n")),
     replaced(JOB, ("        env:\n", "        securityContext: {privileged: false}\n        env:\n"))),
    ("k8s-root", replaced(JOB, (SECURITY, "securityContext: {runAsUser: 0} # HERE")), JOB),
    ("k8s-root", replaced(JOB, (SECURITY, "securityContext: {runAsNonRoot: false} # HERE")), JOB),
    ("k8s-image-tag", replaced(JOB, (IMAGE, "registry.example:5000/train # HERE")), JOB),
    ("k8s-image-tag", replaced(RUNTIME, ("example/train:1\n", "example/train:latest # HERE\n")),
     replaced(JOB, (IMAGE, "train@sha256:0a"))),
    ("k8s-secret-value", replaced(JOB, (DEBUG, f"- {{name: HF_TOKEN, value: {FAKE}}} # HERE")), JOB),
    ("k8s-secret-value", replaced(JOB, ("train.py", f"train.py, --token={FAKE}"), (COMMAND.split(",", maxsplit=1)[0],) * 2).replace(
        "/runs/a]", "/runs/a] # HERE"), replaced(JOB, (DEBUG, "- {name: WANDB_API_KEY, value: $(KEY)}"))),
    ("k8s-secret-value", f"apiVersion: v1\nkind: ConfigMap\ndata:\n  WANDB_API_KEY: {'0a' * 20} # HERE\n",
     "apiVersion: v1\nkind: ConfigMap\ndata:\n  MODE: online\n"),
    ("k8s-host-port", replaced(JOB, ("      restartPolicy", "      hostNetwork: true\n      restartPolicy"),
                               (DEBUG, '- {name: MASTER_PORT, value: "29500"} # HERE')),
     replaced(JOB, (DEBUG, '- {name: MASTER_PORT, value: "29500"}'))),
    ("k8s-host-port", replaced(JOB, ("      restartPolicy", "      hostNetwork: true\n      restartPolicy"),
                               (COMMAND, "args: [torchrun, --master_port, '1', t.py] # HERE")),
     replaced(JOB, ("      restartPolicy", "      hostNetwork: true\n      restartPolicy"))),
]  # fmt: skip
CLEAN = {"job": JOB, "pytorchjob": PYTORCH, "jobset": JOBSET, "trainjob": RUNTIME}
"""Manifests without a trap."""
