"""Plans made by hand, so that a test of how plans are shown does not move with the planner's figures."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from fullft_cluster.plan import Interval, Memory, Option, Peaks, Phase, Plan, PlannedModel, Quantity, Time

GPU_PHASES: dict[str, dict[str, float]] = {
    "load": {"parameters": 7.6, "gathered_parameters": 1.0, "framework": 1.5},
    "forward": {"parameters": 7.6, "gradients": 7.6, "optimizer_states": 45.6, "gathered_parameters": 2.2,
                "activations": 2.5, "logits_and_loss": 0.9, "fragmentation": 0.3, "framework": 1.5},
    "backward": {"parameters": 7.6, "gradients": 7.6, "optimizer_states": 45.6, "gathered_parameters": 2.2,
                 "reduce_buckets": 1.6, "activations": 2.5, "layer_backward": 0.8, "fragmentation": 0.4,
                 "framework": 1.5},
    "optimizer_step": {"parameters": 7.6, "gradients": 7.6, "optimizer_states": 45.6, "optimizer_step": 5.6,
                       "framework": 1.5},
    "save": {"parameters": 7.6, "gradients": 7.6, "optimizer_states": 45.6, "framework": 1.5},
    "resume": {"parameters": 7.6, "optimizer_states": 45.6, "framework": 1.5},
}  # fmt: skip
HOST_PHASES: dict[str, dict[str, float]] = {
    "load": {"workers": 32.0, "weights_whole": 121.6},
    "forward": {"workers": 32.0},
    "backward": {"workers": 32.0},
    "optimizer_step": {"workers": 32.0},
    "save": {"workers": 32.0, "pinned": 8.0},
    "resume": {"workers": 32.0, "shards_read": 425.6},
}


def peaks(phases: dict[str, dict[str, float]], capacity_gib: float, *, spread: float = 0.04) -> Peaks:
    """Return the peaks of phases given by their parts in GiB, each as uncertain as ``spread`` says."""
    made = []
    for name, parts in phases.items():
        whole = sum(parts.values())
        gib = Interval(low=whole * (1 - spread), expected=whole, high=whole * (1 + spread))
        made.append(Phase(name=name, parts=parts, gib=gib))  # type: ignore[arg-type]
    top = max(made, key=lambda phase: phase.gib.expected)
    return Peaks(phases=tuple(made), peak=top.name, parts=top.parts, low_gib=top.gib.low, expected_gib=top.gib.expected,
                 high_gib=top.gib.high, capacity_gib=capacity_gib)  # fmt: skip


def option(gpus: int, hours: float, **fields: Any) -> Option:
    """Return an option on nodes of eight."""
    values: dict[str, Any] = {
        "nodes": max(gpus // 8, 1), "gpus": gpus, "gpus_per_node": min(gpus, 8), "micro_batch_size": 1,
        "gradient_accumulation_steps": 64 // gpus, "activation_checkpointing": True, "zero_stage": 3, "hpz": False,
        "offload": "none", "gpu_gib": 69.8, "fits": True, "step_seconds": hours * 3600 / 1563, "hours": hours,
        "gpu_hours": hours * gpus, "cost": hours * gpus * 2.0, "pareto": False, "chosen": False,
    }  # fmt: skip
    return Option(**values | fields)


OPTIONS = (
    option(8, 20.9, gpu_gib=130.6, fits=False,
           note="needs 130.6 GiB a GPU where there are 79.3 (51.3 GiB short) on 8 GPUs (1 node of 8) of a100-80gb"),
    option(8, 31.4, offload="optimizer", gpu_gib=34.4, pareto=True),
    option(16, 10.6, chosen=True, pareto=True),
    option(16, 15.9, offload="optimizer", micro_batch_size=4, gpu_gib=31.2),
    option(32, 5.8, micro_batch_size=2, gpu_gib=46.3),
    option(32, 5.2, micro_batch_size=2, hpz=True, gpu_gib=50.1, pareto=True),
)  # fmt: skip

TIME = Time(
    step_seconds=Interval(low=21.5, expected=24.1, high=29.8),
    step_parts={"compute": 20.9, "communication": 2.4, "optimizer": 0.8},
    tokens_per_second_per_gpu=Interval(low=274.9, expected=339.9, high=381.0),
    mfu=Interval(low=0.349, expected=0.431, high=0.483),
    checkpoint_seconds=457.0,
    tokens=204_865_536,
    tokens_source="rows of train.jsonl x 2048, one epoch",
    total_steps=1563,
    hours=Interval(low=9.5, expected=10.6, high=13.1),
    gpu_hours=Interval(low=152.0, expected=169.6, high=209.6),
    cost=Interval(low=304.0, expected=339.2, high=419.2),
    basis="63 published runs on A100-80GB, leave-one-out error 5.4 %",
)

QUANTITIES = (
    Quantity(name="parameters", value=65_285_660_672, unit="1", formula="2Vh + L(2hq + 2hk + 3hi + 2h) + h",
             source="the model's config", origin="derived"),
    Quantity(name="learning_rate", value=1e-6, unit="1", formula="by parameters: 1e-6 for 65B",
             source="usual advice for full fine-tuning", origin="default"),
    Quantity(name="gpu.optimizer_states", value=45.6, unit="GiB", formula="12 x parameters / gpus",
             source="ZeRO, https://arxiv.org/abs/1910.02054; deepspeed/runtime/zero/stage3.py", origin="derived"),
    Quantity(name="gpu.activations", value=2.5, unit="GiB", formula="layers x e x hidden x tokens",
             source="Korthikanti et al. (https://arxiv.org/abs/2205.05198), 'recomputation'", origin="derived"),
    Quantity(name="price", value=2.0, unit="a GPU-hour", formula="as given", source="--price", origin="given"),
)  # fmt: skip


def example_plan(**changes: Any) -> Plan:
    """Return 65b on two nodes of eight A100-80GB, with ``changes`` to the fields of the plan."""
    plan = Plan(
        model=PlannedModel(name="65b", model_type="llama", parameters=65_285_660_672, num_hidden_layers=80,
                           hidden_size=8192, vocab_size=32000),
        cluster="a100-80gb", gpu="a100-80gb", precision="bf16", nodes=2, gpus=16, gpus_per_node=8,
        micro_batch_size=1, gradient_accumulation_steps=4, activation_checkpointing=True, offload="none",
        loss="chunked", attn_implementation="flash_attention_2",
        global_batch_size=64, seq_len=2048, learning_rate=1e-6, warmup_ratio=0.03, weight_decay=0.0,
        max_grad_norm=1.0, epochs=1, max_steps=None, rows=100_000, seed=42,
        memory=Memory(gpu=peaks(GPU_PHASES, 79.33), host=peaks(HOST_PHASES, 1006.0, spread=0.1),
                      host_gib_per_node=457.6, host_capacity_gib_per_node=1006.0, allocated_gib=67.9),
        checkpoint_gb=914.0, export_gb=130.6, disk_gb=2872.6, disk_free_gb=50_000.0, time=TIME,
        signal_lead_seconds=552,
        why=("16 GPUs are the fewest that fit without offload.",
             "Activations are recomputed: they take 2.5 GiB where all of them would take 119.2 GiB, for a third more "
             "compute.",
             "The next smaller plan, 8 GPUs, needs 130.6 GiB a GPU where there are 79.3."),
        options=OPTIONS, quantities=QUANTITIES,
    )  # fmt: skip
    return replace(plan, **changes)


def cpu_plan() -> Plan:
    """Return a tiny model on two processes without GPUs: small amounts, no MFU, nothing known of the data."""
    parts = {"parameters": 0.002, "optimizer_states": 0.012, "framework": 0.06}
    small = peaks(dict.fromkeys(GPU_PHASES, parts), 7.5)
    time = replace(
        TIME, mfu=None, tokens=None, total_steps=None, hours=None, gpu_hours=None, cost=None, checkpoint_seconds=0.02,
        step_parts={"compute": 0.03, "communication": 0.001},
        step_seconds=Interval(low=0.01, expected=0.031, high=0.05), tokens_source="neither data nor max_steps is given",
        basis="a guess",
    )  # fmt: skip
    plan = example_plan(cluster="local", gpu="cpu", nodes=1, gpus=2, gpus_per_node=2, gradient_accumulation_steps=32)
    return replace(
        plan,
        memory=Memory(gpu=small, host=small, host_gib_per_node=0.15, host_capacity_gib_per_node=15.0,
                      allocated_gib=0.0),
        time=time, checkpoint_gb=0.0016, export_gb=0.0003, disk_gb=0.005, disk_free_gb=None,
        why=("On CPUs all processes of a node are taken: fewer would save nothing.",), quantities=(),
        options=(option(2, 1.2, chosen=True, pareto=True, gpu_gib=0.074, cost=None, gradient_accumulation_steps=32),),
    )  # fmt: skip
