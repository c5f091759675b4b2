"""For each rule of the linter a text with its trap, `HERE` in the line of the finding, and a text without."""

# ruff: noqa: E501  # a case reads best on a line

from __future__ import annotations

SCRIPT = """\
#!/bin/bash
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=a100:8
#SBATCH -c 96
#SBATCH --mem 236G --time=24:00:00
#SBATCH --signal=B:USR1@482
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

set -o pipefail
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST") || exit 1
export MASTER_ADDR="${hosts%%$'\\n'*}"
export MASTER_PORT=$((15000 + SLURM_JOB_ID % 16000))
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
trap 'touch stop' USR1
srun torchrun --nnodes=2 --nproc_per_node=8 --rdzv_endpoint="$MASTER_ADDR:$MASTER_PORT" train.py &
pid=$!
wait "$pid"
while kill -0 "$pid" 2>/dev/null; do wait "$pid"; done
wait "$pid"
"""
"""A script without a trap."""


def script(*changes: tuple[str, str]) -> str:
    """Return SCRIPT with each first text replaced by the second."""
    text = SCRIPT
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return text


SRUN = 'srun torchrun --nnodes=2 --nproc_per_node=8 --rdzv_endpoint="$MASTER_ADDR:$MASTER_PORT" train.py &'
SIGNAL = "#SBATCH --signal=B:USR1@482"
NODES = "#SBATCH --nodes=2"
PORT = "export MASTER_PORT=$((15000 + SLURM_JOB_ID % 16000))"
ADDRESS = "export MASTER_ADDR=\"${hosts%%$'\\n'*}\""
TRAP = "trap 'touch stop' USR1"
REQUEUE = "#SBATCH --requeue"
APPEND = "#SBATCH --open-mode=append"
LOOP = 'while kill -0 "$pid" 2>/dev/null; do wait "$pid"; done\nwait "$pid"\n'
FAKE = "hf_" + "a1B2" * 8
"""Of a token's form; no token."""

SBATCH: list[tuple[str, str, str]] = [
    # rule, with the trap, without it
    ("sbatch-no-shebang", script(("#!/bin/bash", "# HERE")), SCRIPT),
    ("sbatch-no-shebang", "\ufeff" + script(("#!/bin/bash", "#!/bin/bash HERE")), SCRIPT),
    ("sbatch-dos-lines", script((NODES, NODES + " # HERE\r")), SCRIPT),
    ("sbatch-ignored-directive", script(("pid=$!", "#SBATCH --exclusive # HERE")), SCRIPT),
    ("sbatch-ignored-directive", script((NODES, "  " + NODES + " # HERE")), script((NODES, "##SBATCH --nodes=9"))),
    ("sbatch-ignored-directive", script((APPEND + "\n", APPEND + "\nmodule load cuda\n"), ("%x-%j.out", "%x-%j.out # HERE")),
     script(("pid=$!", "cat > j <<EOF\n#SBATCH --nodes=1\nEOF"))),
    ("sbatch-variable-in-directive", script(("%x-%j.out", "$HOME/%j.out # HERE")), SCRIPT),
    ("sbatch-no-signal", script((SIGNAL, ""), (NODES, NODES + " # HERE")), SCRIPT),
    ("sbatch-no-signal", script((SIGNAL, "##SBATCH --signal=B:USR1@99"), (NODES, NODES + " # HERE")),
     "#!/bin/bash\n#SBATCH --mem=1G\npython tokenise.py\n"),
    ("sbatch-signal-lead", script((SIGNAL, "#SBATCH --signal=B:USR1@30 # HERE")),
     script((SIGNAL, "#SBATCH --signal=B:USR1"))),
    ("sbatch-requeue-truncates", script((APPEND, ""), (REQUEUE, REQUEUE + " # HERE")), SCRIPT),
    ("sbatch-requeue-truncates", script((APPEND, "#SBATCH --open-mode=truncate"), (REQUEUE, REQUEUE + " # HERE")),
     script((APPEND, ""), (REQUEUE, "#SBATCH --no-requeue"))),
    ("sbatch-requeue-unsaid", script((REQUEUE, ""), (NODES, NODES + " # HERE")),
     script((REQUEUE, "#SBATCH --no-requeue"))),
    ("sbatch-log-overwritten", script((APPEND, ""), ("%x-%j.out", "train.log # HERE")), SCRIPT),
    ("sbatch-log-overwritten", script((APPEND, ""), ("--output=%x-%j.out", "-e %x.err # HERE")),
     script((APPEND, ""), ("%x-%j.out", "logs/%A_%a.log"))),
    ("sbatch-memory", script(("--mem 236G ", ""), (NODES, NODES + " # HERE")),
     script(("--mem 236G ", "--mem-per-gpu=20G "))),
    ("sbatch-memory", script(("--mem 236G", "--mem=0"), ("--time=24:00:00", "--time=24:00:00 # HERE")),
     script(("--mem 236G", "--mem=0 --exclusive"))),
    ("sbatch-no-time", script((" --time=24:00:00", ""), (NODES, NODES + " # HERE")),
     script((" --time=24:00:00", " -t1-0"))),
    ("sbatch-tasks-gpus", script(("-c 96", "--gpus-per-task=4 # HERE")), script(("-c 96", "--gpus-per-task=8"))),
    ("sbatch-tasks-gpus", script(("-c 96", "--gpus-per-task=2 # HERE"), ("--ntasks-per-node=1", "-n4"),
                                 ("--gpus-per-node=a100:8", "--gres=gpu:a100:8,nvme:1")),
     script(("-c 96", "--gpus-per-task=2"), ("--ntasks-per-node=1", "-n8"), ("--gpus-per-node", "--gres=gpu"),
            ("gpu=a100:8", "gpu:8"))),
    ("sbatch-signal-lost", script((TRAP, ""), (SIGNAL, SIGNAL + " # HERE")), script((TRAP, "trap on_usr1 SIGUSR1"))),
    ("sbatch-signal-lost", script((SIGNAL, "#SBATCH --signal=USR1@482"), (TRAP, TRAP + " # HERE")), SCRIPT),
    ("sbatch-signal-lost", script((SIGNAL, "#SBATCH --signal=12@482"), (TRAP, ""), (SRUN, SRUN + " # HERE")),
     script((SIGNAL, "#SBATCH --signal=USR2@482"), (TRAP, ""), (SRUN, "srun python train.py"))),
    ("sbatch-signal-lost", script((TRAP, "trap '' USR1"), (SIGNAL, SIGNAL + " # HERE")),
     script((TRAP, "trap '' USR1"), (SRUN, "exec srun python train.py"))),
    ("sbatch-trap-foreground", script((SRUN, SRUN[:-2] + " # HERE")), SCRIPT),
    ("sbatch-trap-foreground", script((SRUN, "if ! srun -u python train.py; then # HERE\n  exit 1\nfi")),
     script((TRAP, "trap cleanup EXIT"), (SRUN, SRUN[:-2]))),
    ("sbatch-trap-foreground", script((SRUN, "srun --label python train.py --bf16 true # HERE")),
     script((TRAP, TRAP + "\nsrun -n2 hostname\nsrun --label nvidia-smi -L"))),
    ("sbatch-wait-once", script((LOOP, ""), ('wait "$pid"', 'wait "$pid" # HERE')), SCRIPT),
    ("sbatch-requeue-in-container", script((SRUN, "srun --container-image=i bash -c 'python t.py; scontrol requeue "
                                                  "$SLURM_JOB_ID' & # HERE")),
     script((SRUN, 'srun --container-image=i bash -c "MASTER_ADDR=$(scontrol show hostnames | head -n1) python t" &'))),
    ("sbatch-requeue-in-container", script((SRUN, "apptainer exec i.sif scontrol requeue 1 & # HERE")),
     script((SRUN, "apptainer exec i.sif python train.py & scontrol requeue $SLURM_JOB_ID"))),
    ("sbatch-export-drops", script((SRUN, "srun --export=NCCL_DEBUG=INFO python train.py & # HERE")),
     script((SRUN, "srun --export=ALL,NCCL_DEBUG=INFO python train.py &"))),
    ("sbatch-export-drops", script((NODES, NODES + "\n#SBATCH --export=NONE"), (SRUN, SRUN + " # HERE")),
     script((NODES, NODES + "\n#SBATCH --export=NONE"), (TRAP, TRAP + "\nexport SLURM_EXPORT_ENV=ALL"))),
    ("sbatch-launcher-per-gpu", script(("--ntasks-per-node=1", "--ntasks-per-node=8"), (SRUN, SRUN + " # HERE")),
     script(("--ntasks-per-node=1", "--ntasks-per-node=8"), ("srun torchrun", "srun --ntasks-per-node=1 torchrun"))),
    ("sbatch-launcher-per-gpu", script((SRUN, "srun -n 16 accelerate launch train.py & # HERE")),
     script((SRUN, "srun -n 16 python train.py &"))),
    ("sbatch-launcher-per-gpu", script(("--ntasks-per-node=1", "--ntasks-per-node=8"), (SRUN, 'LAUNCHER="python -m torch.distributed.run"\nsrun bash -c "$LAUNCHER train.py" & # HERE')),
     script((SRUN, 'LAUNCHER="python -m torch.distributed.run"\nsrun bash -c "$LAUNCHER train.py" &'))),
    ("sbatch-launcher-one-node", script((SRUN, "torchrun --nnodes=2 train.py & # HERE")),
     script((NODES, "#SBATCH -N1"), (SRUN, "torchrun --nproc_per_node=8 train.py &"))),
    ("sbatch-fixed-port", script((PORT, "export MASTER_PORT=29500 # HERE")), SCRIPT),
    ("sbatch-fixed-port", script((SRUN, SRUN.replace("$MASTER_PORT", "29500") + " # HERE")),
     script((PORT, "export MASTER_PORT=29500"), (NODES, NODES + "\n#SBATCH --exclusive"))),
    ("sbatch-master-addr", script((ADDRESS, "export MASTER_ADDR=localhost # HERE")),
     script((ADDRESS, "export MASTER_ADDR=localhost"), (NODES, "#SBATCH -N 1"))),
    ("sbatch-master-addr", script((ADDRESS, "MASTER_ADDR=$(scontrol show hostnames | head -n1 || echo 127.0.0.1) # HERE")),
     script((ADDRESS, "export MASTER_ADDR=$(hostname)"))),
    ("sbatch-master-addr", script((SRUN, "srun bash -c 'MASTER_ADDR=$(hostname) python train.py' & # HERE")),
     script((SRUN, 'srun bash -c "MASTER_ADDR=$(hostname) python train.py" &'))),
    ("sbatch-cpus-per-task", script(('export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"', ""), (SRUN, SRUN + " # HERE")),
     script(('export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"', ""), ("srun torch", "srun -c96 torch"))),
    ("sbatch-pipe-hides-exit", script(("set -o pipefail", ""), (SRUN, SRUN[:-2] + " 2>&1 | tee log & # HERE")),
     script((SRUN, SRUN[:-2] + " 2>&1 | tee log &"))),
    ("sbatch-secret", script((TRAP, f"export HF_TOKEN={FAKE} # HERE\n{TRAP}")),
     script((TRAP, f"export HF_TOKEN=$(cat ~/.token) PAD_TOKEN='<|endoftext|>'\n{TRAP}"))),
    ("sbatch-secret", script((TRAP, f"wandb login {'0123456789abcdef' * 2}01234567 # HERE\n{TRAP}")),
     script((TRAP, f'export WANDB_API_KEY="$KEY" HF_TOKEN=your_token_here MAX_TOKENS=20480000\n{TRAP}'))),
    ("sbatch-secret", script((TRAP, f'export WANDB_API_KEY="{"0a" * 20}" # HERE\n{TRAP}')), SCRIPT),
]  # fmt: skip

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


def manifest(text: str, *changes: tuple[str, str]) -> str:
    """Return a manifest with each first text replaced by the second."""
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return text


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
    ("k8s-master-decides", manifest(PYTORCH, ("# lint: ignore k8s-master-decides\n", ""), ("PyTorchJob", "PyTorchJob # HERE")),
     PYTORCH),
    ("k8s-exit-code-policy", PYTORCH.replace("restartPolicy: Never", "restartPolicy: ExitCode # HERE", 1), PYTORCH),
    ("k8s-restarts-alone", PYTORCH.replace("restartPolicy: Never", "restartPolicy: OnFailure # HERE", 1), PYTORCH),
    ("k8s-restarts-alone", PYTORCH.replace("Worker:\n", "Worker:\n      # without one\n").replace(
        "replicas: 3\n      restartPolicy: Never", "replicas: 3 # HERE"), JOB),
    ("k8s-restarts-alone", manifest(JOB, ("restartPolicy: Never", "restartPolicy: OnFailure # HERE")),
     manifest(JOB, ("restartPolicy: Never", "restartPolicy: OnFailure"), (": 4\n", ": 1\n"))),
    ("k8s-backoff-sum", manifest(PYTORCH, ("restartPolicy: Never", "restartPolicy: OnFailure"),
                                 ("backoffLimit: 8", "backoffLimit: 3 # HERE")),
     manifest(PYTORCH, ("restartPolicy: Never", "restartPolicy: OnFailure"))),
    ("k8s-child-backoff", manifest(JOBSET, ("backoffLimit: 0", "backoffLimit: 3 # HERE")), JOBSET),
    ("k8s-child-backoff", manifest(RUNTIME, ("            backoffLimit: 0\n            template:",
                                             "            template: # HERE")), RUNTIME),
    ("k8s-rank-is-replica", manifest(PYTORCH, (COMMAND, "command: [python, train.py, --rank=$(RANK)] # HERE")),
     manifest(PYTORCH, (COMMAND, "command: [torchrun, --node_rank=$(RANK), train.py]"))),
    ("k8s-rank-is-replica", manifest(PYTORCH, (COMMAND, "args: [torchrun --nnodes $WORLD_SIZE train.py] # HERE")),
     manifest(PYTORCH, (COMMAND, "args: [python train.py --rank $RANK]"), ('"8"', '"1"'))),
    ("k8s-ttl-restarts", manifest(RUNTIME, ("{maxRestarts: 3}", "{maxRestarts: 3}\n      ttlSecondsAfterFinished: 60 # HERE")),
     manifest(JOBSET, ("{maxRestarts: 3}", "{maxRestarts: 3}\n  ttlSecondsAfterFinished: 60"))),
    ("k8s-no-gang", manifest(JOB, (LABEL, ""), ("kind: Job", "kind: Job # HERE")), JOB),
    ("k8s-no-gang", manifest(JOBSET, (LABEL, ""), ("kind: JobSet", "kind: JobSet # HERE")),
     manifest(JOB, (LABEL, ""), ("      restartPolicy", "      schedulerName: volcano\n      restartPolicy"))),
    ("k8s-no-gang", manifest(RUNTIME, ("  podGroupPolicy: {coscheduling: {scheduleTimeoutSeconds: 60}}\n", ""),
                             ("numNodes: 4", "numNodes: 4 # HERE")), RUNTIME),
    ("k8s-shared-memory", manifest(JOB, (SHM, ""), ("- name: pytorch", "- name: pytorch # HERE")), JOB),
    ("k8s-shared-memory", manifest(JOB, ("emptyDir: {medium: Memory}", "emptyDir: {} # HERE")),
     manifest(JOB, (SHM, ""), ("nvidia.com/gpu: 8", "nvidia.com/gpu: 1"))),
    ("k8s-checkpoints-in-emptydir", manifest(JOB, (CLAIM, "emptyDir: {}"), ("mountPath: /runs}", "mountPath: /runs} # HERE")),
     JOB),
    ("k8s-checkpoints-in-emptydir", manifest(JOB, (CLAIM, "emptyDir: {}"), ("--output_dir=/runs/a", "x"),
                                             ("mountPath: /runs}", "mountPath: /checkpoints} # HERE")),
     manifest(JOB, (CLAIM, "emptyDir: {}"), ("--output_dir=/runs/a", "x"))),
    ("k8s-grace-period", manifest(JOB, ("Seconds: 600", "Seconds: 30 # HERE")), JOB),
    ("k8s-grace-period", manifest(JOB, (GRACE + "      restartPolicy: Never", "      restartPolicy: Never # HERE")),
     manifest(JOB, (GRACE, ""), (GPUS, "          limits: {cpu: 96}\n"))),
    ("k8s-unreachable-node", manifest(JOB, (UNREACHABLE, "- {key: spot, operator: Exists}"), (GRACE, "      terminationGracePeriodSeconds: 600 # HERE\n")),
     JOB),
    ("k8s-unreachable-node", manifest(JOB, (UNREACHABLE, "- operator: Exists # HERE")),
     manifest(JOB, (UNREACHABLE, UNREACHABLE + "\n      - {key: nvidia.com/gpu, operator: Exists}"))),
    ("k8s-gpu-limits", manifest(JOB, ("requests: {nvidia.com/gpu: 8}", "requests: {nvidia.com/gpu: 4} # HERE")), JOB),
    ("k8s-gpu-limits", manifest(JOB, ("limits: {nvidia.com/gpu: 8, cpu: 96}", "limits: {cpu: 96}"),
                                ("requests: {nvidia.com/gpu: 8}", "requests: {nvidia.com/gpu: 8} # HERE")), JOB),
    ("k8s-gpu-not-requested", manifest(JOB, (GPUS, "          limits: {cpu: 96}\n"), ("A100-SXM4-80GB}", "A100} # HERE")), JOB),
    ("k8s-gpu-not-requested", manifest(JOB, (GPUS, "          limits: {cpu: 96}\n"), ("nvidia.com/gpu.product", "x"),
                                       (DEBUG, '- {name: CUDA_VISIBLE_DEVICES, value: "0"} # HERE')),
     manifest(JOB, (GPUS, "          limits: {cpu: 96}\n"), ("nvidia.com/gpu.product", "x"),
              (DEBUG, '- {name: CUDA_VISIBLE_DEVICES, value: "-1"}'))),
    ("k8s-fabric-not-requested", manifest(JOB, (DEBUG, "- {name: NCCL_IB_HCA, value: mlx5} # HERE")), JOB),
    ("k8s-fabric-not-requested", manifest(JOB, (DEBUG, "- {name: FI_PROVIDER, value: efa} # HERE")),
     manifest(JOB, (DEBUG, "- {name: FI_PROVIDER, value: efa}"), ("cpu: 96", "vpc.amazonaws.com/efa: 4"))),
    ("k8s-privileged", manifest(JOB, ("        env:\n", "        securityContext: {privileged: true} # HERE\n        env:\n")),
     manifest(JOB, ("        env:\n", "        securityContext: {privileged: false}\n        env:\n"))),
    ("k8s-root", manifest(JOB, (SECURITY, "securityContext: {runAsUser: 0} # HERE")), JOB),
    ("k8s-root", manifest(JOB, (SECURITY, "securityContext: {runAsNonRoot: false} # HERE")), JOB),
    ("k8s-image-tag", manifest(JOB, (IMAGE, "registry.example:5000/train # HERE")), JOB),
    ("k8s-image-tag", manifest(RUNTIME, ("example/train:1\n", "example/train:latest # HERE\n")),
     manifest(JOB, (IMAGE, "train@sha256:0a"))),
    ("k8s-secret-value", manifest(JOB, (DEBUG, f"- {{name: HF_TOKEN, value: {FAKE}}} # HERE")), JOB),
    ("k8s-secret-value", manifest(JOB, ("train.py", f"train.py, --token={FAKE}"), (COMMAND.split(",", maxsplit=1)[0],) * 2).replace(
        "/runs/a]", "/runs/a] # HERE"), manifest(JOB, (DEBUG, "- {name: WANDB_API_KEY, value: $(KEY)}"))),
    ("k8s-secret-value", f"apiVersion: v1\nkind: ConfigMap\ndata:\n  WANDB_API_KEY: {'0a' * 20} # HERE\n",
     "apiVersion: v1\nkind: ConfigMap\ndata:\n  MODE: online\n"),
    ("k8s-host-port", manifest(JOB, ("      restartPolicy", "      hostNetwork: true\n      restartPolicy"),
                               (DEBUG, '- {name: MASTER_PORT, value: "29500"} # HERE')),
     manifest(JOB, (DEBUG, '- {name: MASTER_PORT, value: "29500"}'))),
    ("k8s-host-port", manifest(JOB, ("      restartPolicy", "      hostNetwork: true\n      restartPolicy"),
                               (COMMAND, "args: [torchrun, --master_port, '1', t.py] # HERE")),
     manifest(JOB, ("      restartPolicy", "      hostNetwork: true\n      restartPolicy"))),
]  # fmt: skip
CLEAN = {"script": SCRIPT, "job": JOB, "pytorchjob": PYTORCH, "jobset": JOBSET, "trainjob": RUNTIME}
