"""The sample text and tokenizer in configs/sample are what the scripts make, to the byte."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fullft_cluster.config import DataConfig
from fullft_cluster.resources import share
from fullft_cluster.row_scan import scan_data

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
SAMPLE = share("configs") / "sample"


def test_text_is_what_the_script_writes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, SCRIPTS / "make_sample_text.py", tmp_path / "train.jsonl"], check=True)
    assert (tmp_path / "train.jsonl").read_bytes() == (SAMPLE / "train.jsonl").read_bytes()
    assert 250_000 < (SAMPLE / "train.jsonl").stat().st_size < 390_000
    assert scan_data(DataConfig(train=str(SAMPLE / "train.jsonl"))).sources[0].exact


def test_solutions_are_right() -> None:
    sums = 0
    for line in (SAMPLE / "train.jsonl").read_text().splitlines():
        for sentence in json.loads(line)["text"].replace(",", "").split(". "):
            left, sign, right = sentence.partition(" = ")
            words = left.split()[-3:]
            if not sign or len(words) != 3 or not words[0].isdigit() or words[1] not in "+-x" or words[1] == "":
                continue
            a, b = int(words[0]), int(words[2])
            want = {"+": a + b, "-": a - b, "x": a * b}[words[1]]
            got = right.split()[0].rstrip(".")
            if left.split()[-4:-3] in (["+"], ["-"]):
                continue  # the end of a longer sum
            assert got == str(want), sentence
            sums += 1
    assert sums > 500


def test_tokenizer_round_trip(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(SAMPLE / "tokenizer"))
    assert len(tokenizer) == 2048
    text = "Zofia has 1,024 apples; näive 猫\n"
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids[1:]) == text
    assert {tokenizer.unk_token, tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token} == {
        "<unk>", "<s>", "</s>", "<pad>"
    }  # fmt: skip


def test_tokenizer_is_what_the_script_trains(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    subprocess.run([sys.executable, SCRIPTS / "make_sample_tokenizer.py", tmp_path], check=True)
    made = json.loads((tmp_path / "tokenizer.json").read_bytes())
    kept = json.loads((SAMPLE / "tokenizer" / "tokenizer.json").read_bytes())
    assert made["model"]["vocab"] == kept["model"]["vocab"]
    assert made["model"]["merges"] == kept["model"]["merges"]
