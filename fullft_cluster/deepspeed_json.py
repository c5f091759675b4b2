"""The DeepSpeed configuration, made here alone and from the Plan alone.

The planner's memory model reads its buckets and limits from the same `zero_optimization`, so what is planned is what
runs. Keys: https://www.deepspeed.ai/docs/config-json/ and deepspeed/runtime/zero/config.py.
"""

from __future__ import annotations

from typing import Any

from fullft_cluster.hardware import CPU
from fullft_cluster.plan import Offload, Plan, ZeroStage

REUSE_DISTANCE = 10**9
"""DeepSpeed's default of stage3_max_live_parameters and stage3_max_reuse_distance, in parameters."""

SUB_GROUP_SIZE = 2 * 10**8
"""Parameters a sub-group of the optimizer step.

The step makes gradients fp32 one sub-group at a time (stage3.py, `_prepare_fp32_grad_for_sub_group`): 6 bytes a
parameter on top of everything else, 1.1 GiB here where DeepSpeed's default of 1e9 takes 5.6 GiB.
"""


REDUCE_BUCKET_ELEMENTS = 5 * 10**7
"""Gradients that ZeRO-1 and 2 reduce at a time. DeepSpeed's default is 5e8: 0.9 GiB, twice where it overlaps."""


def zero_optimization(
    hidden_size: int, gpu: str, offload: Offload, stage: ZeroStage = 3, hpz: int = 1
) -> dict[str, Any]:
    """Return the ``zero_optimization`` block; ``hpz`` is the number of GPUs that share a second copy of the parameters.

    Buckets follow the hidden size as in transformers' "auto" values (integrations/deepspeed.py,
    `trainer_config_finalize`): h*h elements to reduce at a time, 0.9*h*h to prefetch, tensors below 10*h kept whole.
    On CPUs every parameter is sharded and released at once, so that a small model takes the road of a large one;
    overlapping is off there, because a gloo thread that outlives the interpreter aborts the process at its end.
    """
    on_cpu = gpu == CPU
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": not on_cpu, "contiguous_gradients": True}
    if stage == 3:
        zero |= {
            "reduce_bucket_size": hidden_size * hidden_size,
            "stage3_prefetch_bucket_size": hidden_size * hidden_size * 9 // 10,
            "stage3_param_persistence_threshold": 0 if on_cpu else 10 * hidden_size,
            "stage3_max_live_parameters": REUSE_DISTANCE,
            "stage3_max_reuse_distance": 0 if on_cpu else REUSE_DISTANCE,
            "sub_group_size": SUB_GROUP_SIZE,
        }
    else:
        zero |= {"reduce_bucket_size": REDUCE_BUCKET_ELEMENTS, "allgather_bucket_size": REDUCE_BUCKET_ELEMENTS}
    if hpz > 1:
        zero["zero_hpz_partition_size"] = hpz
    if offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": not on_cpu}
    if offload == "parameters":
        zero["offload_param"] = {"device": "cpu", "pin_memory": not on_cpu}
    return zero


def _optimizer(plan: Plan) -> dict[str, Any]:
    """Return the ``optimizer`` block: torch's AdamW, or DeepSpeed's CPU Adam where it works off the GPU.

    torch's AdamW resumes bit for bit and needs no compiler on the node; DeepSpeed's own drift by 1e-5 after a resume
    (csrc/includes/cpu_adam.h multiplies the bias corrections up). ``fused`` spares torch's multi-tensor temporaries,
    4 bytes a parameter of the sub-group; on CPUs the plain loop serves.
    """
    params: dict[str, Any] = {
        "lr": plan.learning_rate,
        "betas": list(plan.adam_betas),
        "eps": plan.adam_eps,
        "weight_decay": plan.weight_decay,
    }
    on_cpu = plan.gpu == CPU
    if on_cpu or plan.offload == "none":
        params["torch_adam"] = True
    if not on_cpu and plan.offload == "none":
        params["fused"] = True
    return {"type": "AdamW", "params": params}


def deepspeed_json(plan: Plan) -> dict[str, Any]:
    """Return the whole of deepspeed.json for a plan. The batch sizes multiply exactly."""
    return {
        "train_batch_size": plan.global_batch_size,
        "train_micro_batch_size_per_gpu": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.gradient_accumulation_steps,
        "gradient_clipping": plan.max_grad_norm,
        # Neither bf16 nor fp16 is fp32.
        "bf16": {"enabled": plan.precision == "bf16"},
        "zero_optimization": zero_optimization(
            plan.model.hidden_size, plan.gpu, plan.offload, plan.zero_stage, plan.gpus_per_node if plan.hpz else 1
        ),
        "optimizer": _optimizer(plan),
        # Progress is told by metrics.jsonl.
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
