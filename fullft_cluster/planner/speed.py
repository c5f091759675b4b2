"""A first estimate of speed: FLOPs over an assumed share of the peak. Not a measurement."""

from __future__ import annotations

import math

from fullft_cluster.hardware import Cluster, Gpu
from fullft_cluster.model import ModelSpec
from fullft_cluster.plan import Time

SIGNAL_MARGIN_SECONDS = 60
"""For the agreement of the workers, the files' digests and the scheduler's own clock. Default."""

SIGNAL_MOST_SECONDS = 65535
"""``sbatch --signal`` takes no more. https://slurm.schedmd.com/sbatch.html#OPT_signal"""


def flops_per_token(model: ModelSpec, seq_len: int, *, recompute: bool) -> float:
    """Return the FLOPs of training on one token, forward and backward, all GPUs together.

    ``6 N + 6 L s q``: two FLOPs a weight forward and four backward, for the N weights that multiply (not the embedding
    table), and causal attention over half of the sequence (https://arxiv.org/abs/2204.02311, appendix B).
    Recomputation runs the forward pass once more: 8 in place of 6.
    """
    matrices = model.parameters - (0 if model.tie_word_embeddings else model.vocab_size * model.hidden_size)
    passes = 8 if recompute else 6
    return float(passes * (matrices + model.num_hidden_layers * seq_len * model.query_size))


def forecast(flops: float, tokens_per_step: int, gpus: int, gpu: Gpu, steps: int | None) -> Time:
    """Return seconds a step, tokens a second and hours, for ``flops`` a token."""
    rate = gpu.peak_tflops * 1e12 * gpu.utilisation / flops
    seconds = tokens_per_step / (rate * gpus)
    hours = steps * seconds / 3600 if steps else None
    return Time(
        step_seconds=seconds,
        tokens_per_second_per_gpu=rate,
        total_steps=steps,
        hours=hours,
        gpu_hours=hours * gpus if hours is not None else None,
    )


def signal_lead_seconds(step_seconds: float, checkpoint_bytes: int, cluster: Cluster) -> int:
    """Return how long before the end the warning has to come: a step, a checkpoint and a margin, in whole seconds."""
    write = checkpoint_bytes / (cluster.filesystem_write_gb_per_second * 1e9)
    lead = math.ceil(step_seconds + write + SIGNAL_MARGIN_SECONDS)
    return min(max(lead, SIGNAL_MARGIN_SECONDS), SIGNAL_MOST_SECONDS)
