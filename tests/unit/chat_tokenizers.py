"""Small tokenizers made of the sample's: with a token that ends turns, with several chat templates, without pad."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fullft_cluster.resources import share

SAMPLE = share("configs") / "sample"

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}{% endgeneration %}"
    "{% else %}{{ message.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_2 = (
    "{% for message in messages %}{% if message.role == 'user' %}{{ bos_token }}[INST] {{ message.content }} [/INST]"
    "{% elif message.role == 'assistant' %} {{ message.content }} {{ eos_token }}"
    "{% else %}{{ raise_exception('no such role: ' + message.role) }}{% endif %}{% endfor %}"
)
"""It writes BOS itself, and closes turns by EOS; it knows no system."""
PLAIN = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
"""Nothing closes a turn."""
FORGETFUL = (
    "{% for message in messages %}{{ message.role }}: "
    "{{ message.content if loop.last or message.role == 'user' else '...' }}<|im_end|>\n{% endfor %}"
)
"""It shortens the answers before the last."""


def make_tokenizer(directory: Path, template: str | None = None, *, pad: str | None = "<pad>") -> Path:
    """Save the sample's tokenizer with two more tokens, `<|im_start|>` (2048) and `<|im_end|>` (2049)."""
    from transformers import AddedToken, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(str(SAMPLE / "tokenizer"))
    tokens = [AddedToken(token, special=True, normalized=False) for token in ("<|im_start|>", "<|im_end|>")]
    tokenizer.add_tokens(tokens, special_tokens=True)
    tokenizer.pad_token = pad
    tokenizer.chat_template = template
    tokenizer.save_pretrained(str(directory))
    return directory
