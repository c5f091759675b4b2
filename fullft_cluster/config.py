"""The noun Config: what a user may say about a run, typed and closed. `config_load` reads it from its sources."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from fullft_cluster.plan import Attention, Engine, Frozen, Loss, Objective, Offload, Precision, ZeroStage

MOST = 2**31 - 1
"""Of any count: what SLURM, torch and a JSON reader all hold; a number beyond is a slip of the keyboard."""

Positive = Annotated[int, Meta(ge=1, le=MOST)]
Machines = Annotated[int, Meta(ge=1, le=10**6)]
Tokens = Annotated[int, Meta(ge=1, le=10**7)]
KubernetesKind = Literal["pytorchjob", "trainjob", "jobset", "job"]
NonNegative = Annotated[float, Meta(ge=0)]
Fraction = Annotated[float, Meta(ge=0, le=1)]


Format = Literal["auto", "text", "prompt_completion", "messages", "alpaca", "sharegpt", "question_answer"]


class Source(Frozen, frozen=True):
    """One of several sources of training rows."""

    path: str
    """A file (.jsonl, .json, .parquet), a directory of them, or a hub id."""
    weight: Annotated[float, Meta(gt=0, le=1000)] = 1.0
    """How often its rows are seen in an epoch: 2 is twice, 0.5 every second row, chosen by the seed."""
    split: str = "train"
    """Of a data set on the hub."""
    subset: str | None = None
    """Of a data set on the hub (its configuration)."""
    format: Format | None = None
    """Default data.format."""
    fields: dict[str, str] | None = None
    """Default data.fields."""


class DataConfig(Frozen, frozen=True):
    """What is learnt from."""

    train: str | None = None
    """A file (.jsonl, .json, .parquet), a directory of them, or a hub id."""
    sources: tuple[Source, ...] = ()
    """Several weighted sources, instead of `train`."""
    validation: str | None = None
    """What the loss is evaluated on: a file, a directory or a hub id (its split `validation`, else `test`)."""
    validation_fraction: Annotated[float, Meta(ge=0, le=0.5)] = 0.0
    """Share of the training rows that is held out for evaluation, chosen by a hash of each row: stable when rows are
    added or reordered."""
    format: Format = "auto"
    """What the rows look like; `auto` tells it by their keys."""
    fields: dict[str, str] = msgspec.field(default_factory=dict)
    """Our name of a field -> the rows' name of it: `prompt: query`, `completion: response`."""
    chat_template: str | None = None
    """Path of a Jinja chat template; default the tokenizer's own."""
    train_on_inputs: bool = False
    """Learn prompts, questions and the turns of users too; default only completions and the assistant's turns. Rows of
    plain text are learnt whole."""
    packing: bool = True
    """Put several rows into a sequence, kept apart; without, each row is padded to train.seq_len."""
    long_rows: Literal["split", "truncate", "drop"] = "split"
    """What becomes of a row of more than train.seq_len tokens."""
    on_bad_row: Literal["error", "skip"] = "error"
    """`skip` passes over rows that cannot be used, and counts them."""
    streaming: bool = False
    """Tokenise while training, a window of rows at a time, for data that is too large for a cache; needs
    train.max_steps."""
    cache_dir: str | None = None
    """Where prepared (tokenised, packed) data is kept, on the shared file system; default `.cache` in runs_dir."""


class TrainConfig(Frozen, frozen=True):
    """The mathematics: a change here changes the loss curve."""

    seq_len: Tokens = 2048
    """Tokens in a packed sequence."""
    global_batch_size: Positive | None = None
    """Sequences an optimizer step; default the planner's choice between 32 and 128."""
    learning_rate: Annotated[float, Meta(gt=0)] | None = None
    """Peak learning rate; default by model size: 1e-5 for 7B down to 1e-6 for 65B."""
    epochs: Positive | None = None
    """Passes over the data; default by rows: 3 under 10k, 2 to 100k, 1 above."""
    max_steps: Positive | None = None
    """Stop after this many optimizer steps, whatever `epochs` says."""
    warmup_ratio: Fraction = 0.03
    """Share of the steps in which the learning rate rises linearly; then it falls as a cosine to 0."""
    weight_decay: NonNegative = 0.01
    """AdamW's decoupled decay; not on norms and biases."""
    max_grad_norm: Annotated[float, Meta(gt=0)] = 1.0
    """Gradients are clipped to this global norm."""
    seed: Annotated[int, Meta(ge=0, lt=2**31)] = 42
    """Of the data order and of random weights."""
    precision: Precision = "bf16"
    """bf16 with fp32 master weights; fp32 for exact tests on CPUs."""
    eval_steps: Positive | None = None
    """Optimizer steps between evaluations; default output.save_steps. One more comes at the end. Only with
    data.validation or data.validation_fraction."""
    early_stopping_patience: Positive | None = None
    """Stop after so many evaluations in a row without a better loss; default never."""
    early_stopping_threshold: NonNegative = 0.0
    """How much lower (nats) a loss has to be to count as better."""


class ResourcesConfig(Frozen, frozen=True):
    """The execution: a change here must not change the loss curve beyond rounding."""

    nodes: Machines | None = None
    gpus_per_node: Machines | None = None
    gpus: Machines | None = None
    """Exactly this many GPUs; default the fewest that fit."""
    max_gpus: Machines | None = None
    """At most this many GPUs."""
    micro_batch_size: Positive | None = None
    """Sequences a GPU computes at once; default the largest that fits, up to 16,384 tokens (4,096 on CPUs)."""
    activation_checkpointing: bool | None = None
    """Recompute activations in the backward pass; default what is fastest of what fits, and off for CPUs."""
    offload: Offload | None = None
    """`optimizer` keeps optimizer states in host memory, `parameters` the parameters too: fewer GPUs, slower steps.
    Default `none`, and more only where nothing else fits."""
    engine: Engine = "deepspeed"
    """`deepspeed` (ZeRO), or `fsdp` (full shard)."""
    zero_stage: ZeroStage | None = None
    """What is sharded over the GPUs: 1 optimizer states, 2 gradients too, 3 parameters too; default 3, and what is
    best of 2 and 3 where the objective or a deadline asks for speed or cost."""
    hpz: bool | None = None
    """ZeRO++ hpZ: a second copy of the parameters within each node spares gathering them between nodes (ZeRO-3);
    default no, and what is best where the objective or a deadline asks for speed or cost."""
    objective: Objective = "fewest-gpus"
    """What is best among the plans that fit: `fewest-gpus`, `least-cost` (GPU-hours), or `fastest`."""
    deadline: str | None = None
    """The run has to end within this time: `24h`, `90m`, `3d`, or as SLURM writes it, `1-12:00:00`."""
    price_per_gpu_hour: Annotated[float, Meta(gt=0, le=10**4)] | None = None
    """For the cost; default the cluster profile's."""
    loss: Loss | None = None
    """How the cross-entropy is computed: `naive` (all logits at once), `chunked` (by pieces of the sequence: less
    memory, and faster), `liger` (Liger's fused kernel, CUDA alone); default chunked."""
    attn_implementation: Attention | None = None
    """`flash_attention_2`, `sdpa` or `eager`; default the first of them that this machine can run."""
    liger_kernel: bool = False
    """Liger's fused RMSNorm, rotary embedding and SwiGLU; CUDA alone."""
    torch_compile: bool = False
    """Compile the model's layers; refused where the first step does not give the loss of the uncompiled model."""


class OutputConfig(Frozen, frozen=True):
    """The run directory."""

    runs_dir: str = "runs"
    """Directory of the run directories; on the shared file system of the cluster."""
    save_steps: Positive = 100
    """Optimizer steps between checkpoints (one is also saved at each stop and at the end)."""
    save_total_limit: Positive = 2
    """Committed checkpoints that are kept."""
    log_steps: Positive = 1
    """Optimizer steps between lines of metrics.jsonl."""
    save_best: bool = True
    """Keep the weights with the lowest evaluation loss in RUN/best, as from_pretrained loads them."""
    report_to: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where metrics go besides metrics.jsonl."""


class SlurmConfig(Frozen, frozen=True):
    """Options of sbatch, by sbatch's names."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    exclude: str | None = None
    time: str | None = None
    """Time limit of one attempt; a longer run is requeued and goes on. Default from the forecast, within the
    partition's limit where an inventory knows it; 24:00:00 where nothing is known."""
    gpus_per_node: str | None = None
    """sbatch --gpus-per-node; default `TYPE:COUNT` with the cluster profile's type and the plan's count."""
    cpus_per_task: Machines | None = None
    """CPUs of the one task per node; default the plan's share of the node."""
    mem: str | None = None
    """Memory per node as sbatch takes it; default what the plan says the host needs."""
    exclusive: bool = False
    prepare_partition: str | None = None
    """Partition of the data preparation job (no GPUs); default `partition`."""
    prepare_time: str | None = None
    """Time limit of the data preparation job; default 04:00:00, or the limit of its partition if that is shorter."""
    prepare_cpus: Machines = 8
    prepare_mem: str = "32G"


class KubernetesConfig(Frozen, frozen=True):
    """What the manifests say beyond the plan."""

    namespace: str = "default"
    kind: KubernetesKind = "pytorchjob"
    """`pytorchjob` (Kubeflow v1), `trainjob` (Kubeflow v2), `jobset`, or `job` (Indexed, needs no operator)."""
    image: str | None = None
    """The workers' image, with a tag or a digest: fullft-cluster and its `train` extra installed."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    python: str = "python3"
    """The interpreter in the image."""
    claim: str | None = None
    """A PersistentVolumeClaim that every node can mount; default one of the run's own (ReadWriteMany)."""
    host_path: str | None = None
    """A directory that every node has mounted, instead of a claim."""
    nfs: str | None = None
    """`server:/path`, instead of a claim."""
    storage_size: str | None = None
    """Size of the run's own claim; default what the plan says the run needs on disk, and a fifth."""
    storage_class: str | None = None
    """Of the run's own claim; default the cluster's."""
    mount_path: str | None = None
    """Where the volume is mounted; default output.runs_dir. The paths of data and weights have to lie below it."""
    service_account: str | None = None
    """One that is there; default one of the run's own, with rights to its own job alone."""
    queue: str | None = None
    """Kueue's LocalQueue."""
    queue_priority: str | None = None
    """Kueue's WorkloadPriorityClass."""
    priority_class: str | None = None
    """The pods' PriorityClass."""
    gang: Literal["volcano", "coscheduling"] | None = None
    """Who starts the pods together where Kueue does not: a PodGroup is made, and the scheduler named."""
    scheduler_name: str | None = None
    """The scheduler of the pods; default the cluster's, or the usual name of `gang`."""
    volcano_queue: str | None = None
    """Volcano's Queue, with `gang: volcano`; default Volcano's own, `default`."""
    active_deadline: str | None = None
    """How long the training may be active before it is ended for good: `7d`, `36h`, or `none`; default three times the
    longest of the plan's estimate, and a day at least; none where the plan has no estimate. Time in a queue does not
    count."""
    node_selector: dict[str, str] = msgspec.field(default_factory=dict)
    """Labels of the nodes, the GPU type's first of all: `nvidia.com/gpu.product: NVIDIA-A100-SXM4-80GB`."""
    tolerations: tuple[str, ...] = ()
    """Taints that are tolerated, as `kubectl taint` writes them: `key=value:NoSchedule`, `key:NoExecute`."""
    unreachable_seconds: Annotated[int, Meta(ge=0, le=86400)] = 30
    """Seconds after which the pods of a node that is lost are given up; Kubernetes' own default is 300."""
    topology_key: str | None = None
    """Label of the domain (rack, block) that the pods had best share: `topology.kubernetes.io/zone`."""
    gpu_resource: str = "nvidia.com/gpu"
    rdma_resource: str | None = None
    """What to ask for besides GPUs: `rdma/hca_shared_devices_a`, `nvidia.com/hostdev`, `vpc.amazonaws.com/efa`."""
    rdma_count: Annotated[int, Meta(ge=1, le=1024)] = 1
    cpus: Machines | None = None
    """CPUs asked for per pod; default nine tenths of the plan's share of the node."""
    memory: str | None = None
    """Memory per pod as Kubernetes writes it; default what the plan says the host needs, and shm_size."""
    shm_size: str = "8Gi"
    """/dev/shm, in memory; a container's own has 64 MiB."""
    prepare_cpus: Machines = 8
    prepare_memory: str = "32Gi"
    run_as_user: Annotated[int, Meta(ge=1, lt=2**31)] = 1000
    run_as_group: Annotated[int, Meta(ge=1, lt=2**31)] = 1000
    env: dict[str, str] = msgspec.field(default_factory=dict)
    """Environment of the containers, over the cluster profile's."""
    egress_ports: tuple[Annotated[int, Meta(ge=1, le=65535)], ...] = ()
    """TCP ports that the pods may reach anywhere, besides DNS, HTTPS and the API server's: a proxy's, say."""
    hf_token_secret: str | None = None
    """A Secret that has the key HF_TOKEN."""
    wandb_secret: str | None = None
    """A Secret that has the key WANDB_API_KEY."""


class SurvivalConfig(Frozen, frozen=True):
    """When a run is given up."""

    max_failures: Annotated[int, Meta(ge=0, le=MOST)] = 3
    """Failures in a row without a newly committed checkpoint, after which the run stops."""
    hang_seconds: Positive = 1800
    """Workers whose heartbeat stands still for this long are ended and the attempt counts as a hang."""


class Config(Frozen, frozen=True):
    """All of it. Precedence of the sources: flag > --set > YAML > cluster profile > default."""

    model: str | None = None
    """A preset (7b, 13b, 30b, 65b, tiny, small), a path to a config.json or its directory, or a hub id."""
    weights: str | None = None
    """A local path, a hub id, or `random`; default the hub id (or `random`) that the preset names."""
    cluster: str | None = None
    """A cluster profile: a name in configs/clusters or a path; default a100-80gb, and `local` on --backend local."""
    inventory: str | None = None
    """Plan on nodes that exist: `slurm` or `kubernetes` asks for them, or the path of a file that `inventory --json`
    made."""
    tokenizer: str | None = None
    """A directory or a hub id, where the tokenizer is not the weights' own; tokens that it adds grow the vocabulary."""
    backend: Literal["local", "slurm", "kubernetes"] | None = None
    name: str | None = None
    """Name of the run; default made of model and data."""
    data: DataConfig = msgspec.field(default_factory=DataConfig)
    train: TrainConfig = msgspec.field(default_factory=TrainConfig)
    resources: ResourcesConfig = msgspec.field(default_factory=ResourcesConfig)
    output: OutputConfig = msgspec.field(default_factory=OutputConfig)
    slurm: SlurmConfig = msgspec.field(default_factory=SlurmConfig)
    kubernetes: KubernetesConfig = msgspec.field(default_factory=KubernetesConfig)
    survival: SurvivalConfig = msgspec.field(default_factory=SurvivalConfig)
