"""Which checkpoint is meant, and the list of them: never a bad one without a word, never an older one in its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from fullft_cluster import checkpoints as ck
from fullft_cluster.checkpoint_choice import choose_checkpoint
from fullft_cluster.cli.export import checkpoints, export, shard_bytes
from fullft_cluster.errors import UsageError
from fullft_cluster.rundir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "run")
    run.make()
    run.update_run(backend="local")
    return run


def commit(run: RunDir, step: int) -> Path:
    partial = ck.begin(run.checkpoints, step, 1)
    (partial / "shard.pt").write_bytes(b"weights" * step)
    entries = ck.seal_files(partial, [partial / "shard.pt"], 0)
    return ck.commit(run.checkpoints, ck.make_manifest(step, 1, 4, {}, entries))


def flip(path: Path) -> None:
    raw = bytearray((path / "shard.pt").read_bytes())
    raw[3] ^= 1
    (path / "shard.pt").write_bytes(raw)


def test_the_newest_a_named_one_and_one_elsewhere(run: RunDir, tmp_path: Path) -> None:
    for step in (5, 10):
        commit(run, step)
    assert choose_checkpoint(run, None, verify=True).step == 10
    for wanted in ("step-5", "5", str(run.checkpoints / "step-5")):
        assert choose_checkpoint(run, wanted, verify=True).step == 5
    (tmp_path / "kept").mkdir()
    (run.checkpoints / "step-5").rename(tmp_path / "kept" / "step-5")
    assert choose_checkpoint(run, str(tmp_path / "kept" / "step-5"), verify=True).step == 5
    with pytest.raises(UsageError, match=r"step-5: no such checkpoint of run\. Good ones: step-10\."):
        choose_checkpoint(run, "step-5", verify=False)


def test_nothing_is_committed_yet(run: RunDir) -> None:
    ck.begin(run.checkpoints, 3, 1)
    with pytest.raises(UsageError, match=r"run: has committed no checkpoint yet\. .*control/checkpoint"):
        choose_checkpoint(run, None, verify=False)
    (commit(run, 4) / "shard.pt").unlink()
    with pytest.raises(UsageError, match=r"has no good checkpoint \(step-4: shard\.pt is missing\)"):
        choose_checkpoint(run, None, verify=False)


def test_a_damaged_one_is_named_with_the_good_one(run: RunDir) -> None:
    for step in (5, 10):
        commit(run, step)
    flip(run.checkpoints / "step-10")
    assert choose_checkpoint(run, None, verify=False).step == 10, "its sizes are right"
    with pytest.raises(UsageError, match=r"step-10: is damaged: shard\.pt does not have the digest.*Good ones: step-5"):
        choose_checkpoint(run, None, verify=True)
    aside = ck.move_aside(run.checkpoints / "step-10", "rank 3 found it damaged")
    for wanted in (aside.name, str(aside)):
        with pytest.raises(UsageError, match="is damaged: rank 3 found it damaged"):
            choose_checkpoint(run, wanted, verify=True)
    with pytest.raises(UsageError, match=r"is no checkpoint\. A checkpoint is a directory step-N"):
        choose_checkpoint(run, str(run.checkpoints), verify=True)


def test_the_list(run: RunDir) -> None:
    shell = CliRunner()
    none = shell.invoke(checkpoints, [str(run.path)], standalone_mode=False)
    assert (none.output, none.return_value) == ("run has committed no checkpoint yet\n", 1)
    for step in (5, 10):
        commit(run, step)
    flip(run.checkpoints / "step-10")
    (commit(run, 15) / "shard.pt").write_bytes(b"")
    shown = shell.invoke(checkpoints, [str(run.path)], standalone_mode=False)
    assert [line.split()[0] for line in shown.output.splitlines()] == ["step-5", "step-10", "step-15"]
    assert [line["good"] for line in lines(run)] == [True, True, False]
    verified = lines(run, "--verify")
    assert [line["good"] for line in verified] == [True, False, False]
    assert verified[0] | {"created": 0} == {
        "step": 5, "path": str(run.checkpoints / "step-5"), "good": True, "reason": "", "verified": True, "bytes": 35,
        "processes": 4, "created": 0,
    }  # fmt: skip
    assert "digest" in verified[1]["reason"]
    assert verified[2]["reason"] == "shard.pt has 0 bytes instead of 105"


def lines(run: RunDir, *options: str) -> list[dict[str, object]]:
    done = CliRunner().invoke(checkpoints, [str(run.path), "--json", *options], standalone_mode=False)
    found: list[dict[str, object]] = json.loads(done.output)
    return found


def test_what_export_refuses_before_it_loads_anything(run: RunDir) -> None:
    for arguments, words in (
        (["--max-shard-size", "5"], "is not a size"),
        (["--checkpoint", "step-7"], "no such checkpoint"),
        ([], "has committed no checkpoint yet"),
    ):
        refused = CliRunner().invoke(export, [str(run.path), *arguments], standalone_mode=False)
        assert isinstance(refused.exception, UsageError)
        assert words in str(refused.exception)
    assert [shard_bytes(text) for text in ("5GB", "1.5 gb", "200MB")] == [5 * 10**9, 1_500_000_000, 200_000_000]
