"""For each rule about sbatch scripts a text with its trap, `HERE` in the line of the finding, and a text without."""

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


def replaced(text: str, *changes: tuple[str, str]) -> str:
    """Return a text with each first text replaced by the second."""
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return text


def script(*changes: tuple[str, str]) -> str:
    """Return SCRIPT with each first text replaced by the second."""
    return replaced(SCRIPT, *changes)


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
    ("sbatch-signal-lost", script((SIGNAL, "#SBATCH --signal=USR1"), (TRAP, ""), (SRUN, SRUN + " # HERE")),
     script((SIGNAL, "#SBATCH --signal=USR1"), (TRAP, ""), ("torchrun", "torchrun --signals-to-handle=SIGUSR1"))),
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
    ("sbatch-pipe-hides-exit", script(("set -o pipefail", ""), (SRUN, "(srun -l python train.py) 2>&1 | tee log # HERE")),
     script(("set -o pipefail", ""), (SRUN, "(srun -l python train.py; echo $?) 2>&1 | tee log"))),
    ("sbatch-secret", script((TRAP, f"export HF_TOKEN={FAKE} # HERE\n{TRAP}")),
     script((TRAP, f"export HF_TOKEN=$(cat ~/.token) PAD_TOKEN='<|endoftext|>'\n{TRAP}"))),
    ("sbatch-secret", script((TRAP, f"wandb login {'0123456789abcdef' * 2}01234567 # HERE\n{TRAP}")),
     script((TRAP, f'export WANDB_API_KEY="$KEY" HF_TOKEN=your_token_here MAX_TOKENS=20480000\n{TRAP}'))),
    ("sbatch-secret", script((TRAP, f'export WANDB_API_KEY="{"0a" * 20}" # HERE\n{TRAP}')), SCRIPT),
]  # fmt: skip
