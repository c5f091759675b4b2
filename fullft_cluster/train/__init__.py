"""What runs inside the allocation: the only part that imports torch, transformers and deepspeed."""
