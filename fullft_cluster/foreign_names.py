"""Keys of other trainers' configurations, and what to write here instead; values of ours that are refused, and why.

From transformers.TrainingArguments, TRL, axolotl, LLaMA-Factory, torchtune, LLM-foundry and DeepSpeed, lower case.
`struct_check.check` looks here before it guesses at spelling.
"""

from __future__ import annotations

_PLANNED = "The planner computes it from the global batch; `fullft-cluster plan` shows it."
_MICRO = "Write resources.micro_batch_size (sequences a GPU computes at once)."
_SEQ = "Write train.seq_len."
_MODEL = "Write model (a preset, a hub id or a path) at the top level, and weights where they lie elsewhere."
_DATA = "Write data.train: a file (.jsonl, .json, .parquet), a directory of them, or a hub id; several: data.sources."
_TOKENIZER = "Write tokenizer (a directory or a hub id) at the top level, where it is not the weights' own."
_PACKING = "Write data.packing: true or false."
_VALIDATION = "Write data.validation_fraction (a share of the rows), or data.validation (a file or a hub id)."
_INPUTS = "Write data.train_on_inputs: true or false."
_TEMPLATE = "Write data.chat_template, the path of a Jinja file; default the tokenizer's own."
_CHECKPOINTING = "Write resources.activation_checkpointing."
_OUTPUT = "Write output.runs_dir; the run gets a directory of its own in it."
_PRECISION = "Write train.precision: bf16 or fp32."
# https://github.com/deepspeedai/DeepSpeed/issues/4017: LLaMA in fp16 becomes NaN.
_FP16 = (
    "LLaMA's activations overflow fp16, whose largest number is 65,504, and it needs loss scaling; bf16 has fp32's "
    "range and is as fast on A100s and newer. Write train.precision: bf16."
)
# https://docs.nvidia.com/cuda/cuda-c-programming-guide/#compute-capabilities: fp8 begins with 8.9.
_FP8 = (
    "An A100 has no fp8 units: its compute capability is 8.0, and they begin with 8.9. On H100s too full fine-tuning "
    "here is bf16, with fp32 master weights. Write train.precision: bf16."
)
_FLASH = "Write resources.attn_implementation: flash_attention_2, sdpa or eager; default the first that can run."
_ZERO = "ZeRO-3 is always on, and its settings come from the plan; `fullft-cluster render` shows them."
_FSDP = "Write resources.engine: fsdp; its settings come from the plan."
_LORA = "Every weight is trained here; for adapters (LoRA, QLoRA) use PEFT or TRL."

FOREIGN_NAMES: dict[str, str] = {
    "per_device_train_batch_size": _MICRO,
    "per_gpu_train_batch_size": _MICRO,
    "train_micro_batch_size_per_gpu": _MICRO,
    "device_train_microbatch_size": _MICRO,
    "micro_batch": _MICRO,
    "batch_size": "Write train.global_batch_size (sequences an optimizer step, over all GPUs).",
    "train_batch_size": "Write train.global_batch_size (sequences an optimizer step, over all GPUs).",
    "global_train_batch_size": "Write train.global_batch_size.",
    "gradient_accumulation_steps": _PLANNED,
    "grad_accum": _PLANNED,
    "num_train_epochs": "Write train.epochs.",
    "num_epochs": "Write train.epochs.",
    "max_train_steps": "Write train.max_steps.",
    "lr": "Write train.learning_rate.",
    "warmup_steps": "Write train.warmup_ratio (a share of all steps).",
    "lr_scheduler_type": "The schedule is a linear warmup, then a cosine; train.warmup_ratio sets the warmup.",
    "lr_scheduler": "The schedule is a linear warmup, then a cosine; train.warmup_ratio sets the warmup.",
    "max_seq_length": _SEQ,
    "max_seq_len": _SEQ,
    "max_length": _SEQ,
    "sequence_len": _SEQ,
    "sequence_length": _SEQ,
    "cutoff_len": _SEQ,
    "block_size": _SEQ,
    "model_max_length": _SEQ,
    "model_name_or_path": _MODEL,
    "model_name": _MODEL,
    "base_model": _MODEL,
    "pretrained_model_name_or_path": _MODEL,
    "tokenizer_name_or_path": _TOKENIZER,
    "tokenizer_name": _TOKENIZER,
    "tokenizer_path": _TOKENIZER,
    "device_map": "Take it out: ZeRO-3 places the shards itself and refuses a device_map.",
    "dataset": _DATA,
    "datasets": _DATA,
    "dataset_name": _DATA,
    "data_path": _DATA,
    "train_file": _DATA,
    "train_files": _DATA,
    "dataset_path": _DATA,
    "dataset_mixer": "Write data.sources: [{path: ..., weight: ...}].",
    "mix_strategy": "Write data.sources: [{path: ..., weight: ...}].",
    "dataset_config_name": "Write subset beside the path in data.sources.",
    "dataset_config": "Write subset beside the path in data.sources.",
    "dataset_split": "Write split beside the path in data.sources.",
    "dataset_text_field": "Write data.fields: {text: KEY}.",
    "field_messages": "Write data.fields: {messages: KEY}.",
    "formatting": "Write data.format: messages, sharegpt or alpaca.",
    "sample_packing": _PACKING,
    "multipack_sampler": _PACKING,
    "neat_packing": _PACKING,
    "pad_to_sequence_len": _PACKING,
    "eval_dataset": _VALIDATION,
    "eval_file": _VALIDATION,
    "validation_file": _VALIDATION,
    "validation_split_percentage": _VALIDATION,
    "val_set_size": _VALIDATION,
    "val_size": _VALIDATION,
    "test_size": _VALIDATION,
    "train_on_input": _INPUTS,
    "train_on_prompt": _INPUTS,
    "completion_only_loss": _INPUTS,
    "assistant_only_loss": _INPUTS,
    "chat_template_path": _TEMPLATE,
    "chat_template_jinja": _TEMPLATE,
    "template": _TEMPLATE,
    "eval_strategy": "Write train.eval_steps.",
    "evaluation_strategy": "Write train.eval_steps.",
    "gradient_checkpointing": _CHECKPOINTING,
    "recompute": _CHECKPOINTING,
    "gradient_clipping": "Write train.max_grad_norm.",
    "max_grad_norm": "Write train.max_grad_norm.",
    "bf16": _PRECISION,
    "fp16": _FP16,
    "fp8": _FP8,
    "train.precision: fp16": _FP16,
    "train.precision: float16": _FP16,
    "train.precision: half": _FP16,
    "train.precision: fp8": _FP8,
    "train.precision: float8": _FP8,
    "attention": _FLASH,
    "flash_attention": _FLASH,
    "flash_attn": _FLASH,
    "use_flash_attention_2": _FLASH,
    "use_liger_kernel": "Write resources.liger_kernel: true, and resources.loss: liger for its loss.",
    "enable_liger_kernel": "Write resources.liger_kernel: true, and resources.loss: liger for its loss.",
    "compile": "Write resources.torch_compile: true.",
    "torch_dtype": _PRECISION,
    "dtype": _PRECISION,
    "mixed_precision": _PRECISION,
    "optim": "The optimizer is AdamW; train.weight_decay and train.learning_rate set it.",
    "optimizer": "The optimizer is AdamW; train.weight_decay and train.learning_rate set it.",
    "output_dir": _OUTPUT,
    "save_folder": _OUTPUT,
    "logging_steps": "Write output.log_steps.",
    "save_interval": "Write output.save_steps.",
    "deepspeed": _ZERO,
    "zero_optimization": _ZERO,
    "fsdp": _FSDP,
    "fsdp_config": _FSDP,
    "offload_optimizer": "Write resources.offload: optimizer.",
    "cpu_offload": "Write resources.offload: optimizer.",
    "offload_param": "Only the optimizer is offloaded. Write resources.offload: optimizer.",
    "num_gpus": "Write resources.gpus.",
    "n_gpus": "Write resources.gpus.",
    "nnodes": "Write resources.nodes.",
    "num_nodes": "Write resources.nodes.",
    "nproc_per_node": "Write resources.gpus_per_node.",
    "world_size": "Write resources.gpus.",
    "ntasks_per_node": "One task a node starts that node's workers. Write resources.gpus_per_node.",
    "gres": "Write slurm.gpus_per_node, or leave it to the plan.",
    "lora_r": _LORA,
    "peft_config": _LORA,
    "load_in_4bit": _LORA,
    "load_in_8bit": _LORA,
    "use_lora": _LORA,
    "adapter": _LORA,
}
