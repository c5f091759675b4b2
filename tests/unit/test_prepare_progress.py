"""train.progress: on a terminal the preparation shows how far it is; rows are counted without being read."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("trl")

from fullft_cluster.config import DataConfig, Source
from fullft_cluster.row_sources import sources_of
from fullft_cluster.train.progress import count_rows

ROOT = Path(__file__).parents[2]


def test_rows_are_counted_without_reading_them(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' * 7)
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x"] * 5}), tmp_path / "b.parquet")
    lines, parquet = (Source(path=str(tmp_path / name), weight=2.0) for name in ("a.jsonl", "b.parquet"))
    assert count_rows(sources_of(DataConfig(sources=(lines, parquet)))) == 24
    (tmp_path / "c.json").write_text(json.dumps([{"text": "x"}]))
    assert count_rows(sources_of(DataConfig(train=str(tmp_path)))) is None


def test_a_bar_on_a_terminal_alone(tmp_path: Path) -> None:
    import yaml

    (tmp_path / "a.jsonl").write_text('{"text": "some words"}\n' * 7)
    run = tmp_path / "runs" / "run"
    run.mkdir(parents=True)
    settings = {"model": "tiny", "weights": "random", "data": {"train": str(tmp_path / "a.jsonl")}}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "fullft_cluster.train.prepare", "--run", str(run)]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment, cwd=ROOT, text=True)
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 4096)
        except OSError:  # its end
            break
    assert process.stdout
    said = process.stdout.read()
    assert process.wait(60) == 0
    assert "rows: 7, 0.0M tokens" in shown.decode()
    assert "packed: 7" in shown.decode()
    assert said.startswith("7 rows, ")
