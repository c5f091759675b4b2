"""prepare --preview: what is learnt is told apart, and what becomes of every row is said, before any run exists."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("transformers")
pytest.importorskip("trl")

from chat_tokenizers import CHATML, LLAMA_2, make_tokenizer  # noqa: E402
from rich.console import Console  # noqa: E402

from fullft_cluster.config import Config, DataConfig, TrainConfig  # noqa: E402
from fullft_cluster.train.preview import preview  # noqa: E402
from fullft_cluster.train.preview_report import print_preview  # noqa: E402

CHAT = [
    {"role": "user", "content": "What is 2 and 3?"},
    {"role": "assistant", "content": "It is 5."},
]


def config(tmp_path: Path, rows: list[object], template: str | None = None, **data: object) -> Config:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    tokenizer = str(make_tokenizer(tmp_path / "tokenizer", template))
    return Config(
        model="tiny", weights="random", tokenizer=tokenizer, train=TrainConfig(seq_len=64),
        data=DataConfig(train=str(path), **data),  # type: ignore[arg-type]
    )  # fmt: skip


def printed(found: object, *, terminal: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, color_system="standard", highlight=False, soft_wrap=True)
    print_preview(found, console)  # type: ignore[arg-type]
    return out.getvalue()


def test_what_is_learnt_is_told_apart(tmp_path: Path) -> None:
    found = preview(config(tmp_path, [{"messages": CHAT}] * 3, CHATML))
    text = printed(found)
    assert "<|im_start|>user\nWhat is 2 and 3?<|im_end|>\n<|im_start|>assistant\n[[It is 5.<|im_end|>]]\n" in text
    assert "turns of the assistant end with <|im_end|>" in text
    assert "rows: all 3 looked at; format messages (3)" in text
    on_terminal = printed(found, terminal=True)
    assert "[[" not in on_terminal
    assert "\x1b[1;32mIt is 5.<|im_end|>\x1b[0m" in on_terminal


def test_every_row_is_accounted_for(tmp_path: Path) -> None:
    """A row that is no JSON, one whose chat the template refuses, one with nothing to learn, one too long."""
    rows = [
        {"messages": CHAT}, "{oops", {"messages": [{"role": "system", "content": "x"}, *CHAT]},
        {"messages": [*CHAT, {"role": "user", "content": "y " * 100}]},
        {"messages": [{"role": "user", "content": "w " * 100}, CHAT[1]]},
    ]  # fmt: skip
    made = config(tmp_path, rows, LLAMA_2, long_rows="truncate")
    found = preview(made)
    assert (found.rows, found.everything, found.tally.rows, found.tally.truncated) == (5, True, 2, 1)
    text = printed(found)
    for said in (
        f"dropped, bad row: 2 rows: {tmp_path}/rows.jsonl:2, {tmp_path}/rows.jsonl:3",
        f"dropped, nothing to learn: 1 row: {tmp_path}/rows.jsonl:5", "no such role: system",
        "refuses bad rows", "1 rows are longer than train.seq_len and are truncated", "longer than train.seq_len",
    ):  # fmt: skip
        assert said in text
    first = preview(made, rows=2, samples=1)
    assert (first.rows, first.everything, len(first.samples)) == (2, False, 1)


def test_padding_saved_is_arithmetic(tmp_path: Path) -> None:
    """Four rows of 15, 15, 31 and 3 tokens: a block of 64 holds them."""
    rows = [{"text": "1" * digits} for digits in (13, 13, 29, 1)]  # the tokenizer takes each digit for itself
    found = preview(config(tmp_path, rows))
    assert (found.tokens, found.blocks, found.labels) == (64, 1, 60)
    assert found.padding.packed == 0
    assert found.padding.to_seq_len == 0.75
    assert found.padding.to_longest == round(1 - 64 / (4 * 31), 4)
    assert {entry.up_to: entry.rows for entry in found.histogram} == {4: 1, 8: 0, 16: 2, 32: 1}
    assert "75.0% padded to 64: packing computes 4.0 times as many" in printed(found)


def test_from_the_command_line(tmp_path: Path) -> None:
    """A tokenizer alone is enough; nothing is written; errors are JSON too."""
    made = config(tmp_path, [{"prompt": "Some words", "completion": " are here"}])
    command = [sys.executable, "-m", "fullft_cluster", "prepare", "--preview", "--json"]
    options = ["--set", f"tokenizer={made.tokenizer}", "--data", "rows.jsonl"]
    before = sorted(tmp_path.rglob("*"))
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (sample,) = json.loads(done.stdout)["samples"]
    assert sample["spans"] == [{"text": "<s>Some words", "learnt": False}, {"text": " are here</s>", "learnt": True}]
    assert sorted(tmp_path.rglob("*")) == before
    options[-1] = "gone.jsonl"
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert f"error: {tmp_path}/gone.jsonl: no such file" in done.stderr
    assert json.loads(done.stdout)["error"]["exit_code"] == 2
