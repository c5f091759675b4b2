"""The command line as a user meets it: exit codes, streams, clear errors, nothing left behind. Whole processes."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROW = '{"text": "Two nodes are better than one."}\n'
SENTINEL = "hf_sentinel_0123456789"


class Shell:
    """Runs the command in a directory of its own, with a PATH that holds only what a test puts there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.bin = directory / "bin"
        self.bin.mkdir()
        (directory / "train.jsonl").write_text(ROW * 20)
        self.env = {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "HOME": str(directory),
            "HF_HUB_OFFLINE": "1",
            "HF_TOKEN": SENTINEL,
            "WANDB_API_KEY": SENTINEL,
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }

    def command(self, name: str, script: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "fullft_cluster", *arguments],
            cwd=self.directory,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "Traceback" not in done.stderr
        return done


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def test_plan_json_has_the_promised_keys(shell: Shell) -> None:
    done = shell("plan", "--model", "65b", "--json")
    assert done.returncode == 0
    plan = json.loads(done.stdout)
    promised = (
        "model.parameters nodes gpus gpus_per_node micro_batch_size gradient_accumulation_steps global_batch_size "
        "learning_rate memory.gpu.parts memory.gpu.expected_gib memory.gpu.capacity_gib memory.host_gib_per_node "
        "checkpoint_gb signal_lead_seconds"
    )
    for dotted in promised.split():
        value = plan
        for key in dotted.split("."):
            value = value[key]
        assert value


def test_plan_for_people_says_why(shell: Shell) -> None:
    done = shell("plan", "--model", "7b", "--explain")
    assert done.returncode == 0
    assert "0.1 x batch" in done.stdout
    assert "arxiv" in done.stdout.lower()
    assert "\x1b" not in done.stdout, "no colours in a pipe"


def test_what_cannot_fit_exits_3(shell: Shell) -> None:
    done = shell("plan", "--model", "65b", "--max-gpus", "4", "--offload", "none")
    assert done.returncode == 3
    assert "GiB short" in done.stderr
    assert "Nearest plan that fits: 16 GPUs" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("plan",), "--model"),
        (("plan", "--model", "56b"), "Did you mean '65b'"),
        (("plan", "--model", "7b", "--cluster", "a100-80g"), "Did you mean 'a100-80gb'"),
        (("plan", "--model", "7b", "--set", "train.seqlen=1"), "Did you mean 'seq_len'"),
        (("plan", "--model", "7b", "--set", "train.per_device_train_batch_size=4"), "micro_batch_size"),
        (("plan", "--model", "7b", "--gpus", "8", "--global-batch-size", "30"), "24"),
        (("plan", "--model", "7b", "--gpus", "-1"), "resources.gpus"),
        (("plan", "--model", "7b", "--seq-len", "4096"), "2048"),
        (("plan", "--model", "7b", "--config", "absent.yaml"), "absent.yaml"),
        (("plan", "--model", "absent/config.json"), "config.json"),
        (("plan", "--model", "7b", "--data", "absent.jsonl"), "absent.jsonl"),
        (("submit", "--model", "7b"), "--data"),
        (("submit", "--model", "7b", "--data", "train.jsonl"), "HF_HUB_OFFLINE"),
        (("submit", "--model", "tiny", "--data", "train.jsonl", "--name", "a b"), "'a-b'"),
        (("submit", "--model", "tiny", "--data", "train.jsonl", "--name", "$(touch x)"), "run name"),
        (("submit", "--model", "tiny", "--data", "train.jsonl", "--name", "a\n#SBATCH --uid=0"), "run name"),
        (("submit", "--model", "tiny", "--data", "train.jsonl", "--runs-dir", "a\nb"), "output.runs_dir"),
        (("status", "absent"), "no such run"),
        (("nonsense",), "No such command"),
    ],
)
def test_bad_input_exits_2_and_says_what_to_write(shell: Shell, arguments: tuple[str, ...], words: str) -> None:
    before = sorted(path.name for path in shell.directory.iterdir())
    done = shell(*arguments)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert done.stdout == ""
    assert sorted(path.name for path in shell.directory.iterdir()) == before, "something half-made is left behind"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "has no rows"),
        (ROW.encode() * 3 + b'{"no": 1}\n', ":4:"),
        (ROW.encode() + b"{broken\n", ":2:"),
        (ROW.encode() + b'{"text": ""}\n', ":2:"),
        (b"\x1f\x8b\x08\x00", "gzip"),
    ],
)
def test_bad_rows_are_named_by_line(shell: Shell, content: bytes, words: str) -> None:
    (shell.directory / "train.jsonl").write_bytes(content)
    done = shell("submit", "--model", "tiny", "--data", "train.jsonl", "--dry-run")
    assert done.returncode == 2
    assert words in done.stderr
    assert "train.jsonl" in done.stderr


def test_errors_of_every_kind_come_at_once(shell: Shell) -> None:
    (shell.directory / "train.jsonl").write_bytes(b'{"no": 1}\n')
    done = shell("submit", "--model", "tiny", "--data", "train.jsonl", "--name", "a b")
    assert "run name" in done.stderr
    assert "train.jsonl:1" in done.stderr


def test_dry_run_prints_the_script_and_changes_nothing(shell: Shell) -> None:
    before = sorted(path.name for path in shell.directory.iterdir())
    done = shell("submit", "--model", "65b", "--data", "train.jsonl", "--backend", "slurm", "--dry-run")
    assert done.returncode == 0
    assert done.stdout.startswith("#!/bin/bash\n")
    assert "would be refused" in done.stderr, "the weights are not here, which a dry run says"
    assert done.stdout == shell("render", "--model", "65b", "--data", "train.jsonl", "--backend", "slurm").stdout
    assert sorted(path.name for path in shell.directory.iterdir()) == before


def test_no_sbatch(shell: Shell) -> None:
    shell.env["PATH"] = f"{shell.bin}"
    done = shell("submit", "--model", "tiny", "--data", "train.jsonl", "--backend", "slurm")
    assert done.returncode == 4
    assert "no `sbatch` on PATH" in done.stderr
    assert not list((shell.directory).glob("runs/*"))


def test_sbatch_refuses_in_its_own_words_and_nothing_is_left(shell: Shell) -> None:
    """The preparation is taken, the training refused: the preparation is cancelled again."""
    shell.command(
        "sbatch",
        'case "$*" in *job.sbatch) echo "sbatch: error: Invalid qos" >&2; exit 1;; esac; echo "Submitted batch job 41"',
    )
    shell.command("scancel", f'echo "$@" > {shell.directory}/cancelled')
    shell.command("srun", "exit 1")
    done = shell("submit", "--model", "tiny", "--data", "train.jsonl", "--backend", "slurm")
    assert done.returncode == 4, done.stderr
    assert "Invalid qos" in done.stderr
    assert (shell.directory / "cancelled").read_text().split() == ["41"]
    assert not [path for path in shell.directory.glob("runs/*") if path.name != ".cache"]


def test_sbatch_prints_junk(shell: Shell) -> None:
    shell.command("sbatch", 'case "$*" in *job.sbatch) echo junk;; *) echo "Submitted batch job 41";; esac')
    shell.command("scancel", "true")
    shell.command("srun", "exit 1")
    done = shell("submit", "--model", "tiny", "--data", "train.jsonl", "--backend", "slurm")
    assert done.returncode == 4
    assert "junk" in done.stderr


def fake_slurm(shell: Shell) -> None:
    """An sbatch that keeps what it gets, and a squeue that says pending."""
    shell.command(
        "sbatch",
        f'case "$*" in *job.sbatch) cp "${{@: -1}}" {shell.directory}/received; echo "$@" > {shell.directory}/options; '
        'echo 42;; *) echo "Submitted batch job 41";; esac',
    )
    shell.command(
        "squeue",
        'case "$*" in *--user*) echo 42 41;; *) echo "42|PENDING|Dependency|"; echo "41|RUNNING|None|node1";; esac',
    )
    shell.command("scancel", f'echo "$@" > {shell.directory}/cancelled')
    shell.command("srun", "exit 1")
    shell.command("scontrol", "exit 1")


def test_the_life_of_a_submission(shell: Shell) -> None:
    fake_slurm(shell)
    arguments = ("--model", "tiny", "--data", "train.jsonl", "--backend", "slurm")
    dry = shell("submit", *arguments, "--dry-run")
    done = shell("submit", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "tiny-train\n"
    assert (shell.directory / "received").read_text() == dry.stdout
    assert "--dependency=afterok:41" in (shell.directory / "options").read_text()
    status = json.loads(shell("status", "tiny-train", "--json").stdout)
    assert (status["state"], status["job_id"], status["prepare_job_id"]) == ("preparing", "42", "41")
    listed = json.loads(shell("list", "--json").stdout)
    assert [run["name"] for run in listed] == ["tiny-train"]
    assert shell("submit", *arguments, "--name", "tiny-train").returncode == 2
    second = shell("submit", *arguments)
    assert second.stdout == "tiny-train-2\n", "the next free name"
    cancelled = shell("cancel", "tiny-train")
    assert cancelled.returncode == 0
    assert (shell.directory / "cancelled").read_text().split() == ["42", "41"]
    assert json.loads(shell("status", "tiny-train", "--json").stdout)["state"] == "cancelled"
    assert shell("cancel", "tiny-train").returncode == 2


def test_no_secret_in_any_artefact(shell: Shell) -> None:
    fake_slurm(shell)
    done = shell("submit", "--model", "tiny", "--data", "train.jsonl", "--backend", "slurm", "--json")
    assert done.returncode == 0
    texts = [done.stdout, done.stderr, shell("plan", "--model", "7b", "--explain").stdout]
    files = [path for path in shell.directory.rglob("*") if path.is_file()]
    assert len(files) > 6
    texts += [path.read_bytes().decode(errors="replace") for path in files]
    assert not [text for text in texts if SENTINEL in text]


def test_render_writes_every_file(shell: Shell) -> None:
    done = shell("render", "--model", "tiny", "--data", "train.jsonl", "--backend", "slurm", "-o", "out")
    assert done.returncode == 0
    names = {"config.yaml", "plan.json", "deepspeed.json", "job.sbatch"}
    assert {path.name for path in (shell.directory / "out").iterdir()} == names


def test_validate_prints_origins_and_a_config_that_is_valid_again(shell: Shell) -> None:
    done = shell("validate", "--model", "tiny", "--data", "train.jsonl", "--set", "train.seed=7")
    assert done.returncode == 0, done.stderr
    assert "seed: 7  # --set" in done.stdout
    (shell.directory / "again.yaml").write_text(done.stdout)
    assert shell("validate", "--config", "again.yaml").returncode == 0


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_completion(shell: Shell, name: str) -> None:
    if name == "bash" and not os.access("/bin/bash", os.X_OK):
        pytest.skip("bash is not installed")
    done = shell("completion", name)
    assert done.returncode == 0
    assert "_FULLFT_CLUSTER_COMPLETE" in done.stdout


def test_completion_knows_presets(shell: Shell) -> None:
    shell.env |= {
        "_FULLFT_CLUSTER_COMPLETE": "bash_complete",
        "COMP_WORDS": "fullft-cluster plan --model 6",
        "COMP_CWORD": "3",
    }
    assert "65b" in shell().stdout


def test_version_and_help(shell: Shell) -> None:
    assert shell("--version").stdout.startswith("fullft-cluster, version ")
    for command in ("plan", "render", "submit", "prepare", "validate", "status", "list", "logs", "cancel", "resume"):
        assert shell(command, "--help").returncode == 0


def test_a_banner_before_the_job_id(shell: Shell) -> None:
    fake_slurm(shell)
    shell.command(
        "sbatch", 'case "$*" in *job.sbatch) echo "Welcome!"; echo "42;lab";; *) echo "Submitted batch job 41";; esac'
    )
    done = shell("submit", "--model", "tiny", "--data", "train.jsonl", "--backend", "slurm", "--json")
    assert json.loads(done.stdout)["job_id"] == "42"


def test_silence_of_slurm_is_not_taken_for_an_end(shell: Shell) -> None:
    fake_slurm(shell)
    name = shell("submit", "--model", "tiny", "--data", "train.jsonl", "--backend", "slurm").stdout.strip()
    shell.command("squeue", 'echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1')
    shell.command("sacct", "exit 1")
    (shell.directory / "received").unlink()
    for command in ("resume", "cancel"):
        done = shell(command, name)
        assert done.returncode == 4, done.stderr
        assert "Unable to contact slurm controller" in done.stderr
    assert not (shell.directory / "received").exists(), "a second job on a live run"
    assert not (shell.directory / "cancelled").exists()
    assert "does not answer" in json.loads(shell("status", name, "--json").stdout)["reason"]


def test_ctrl_c_between_two_jobs_leaves_none(shell: Shell) -> None:
    shell.command(
        "sbatch", 'case "$*" in *job.sbatch) kill -INT $PPID; sleep 5;; *) echo "Submitted batch job 41";; esac'
    )
    shell.command("scancel", f'echo "$@" > {shell.directory}/cancelled')
    shell.command("srun", "exit 1")
    done = shell("submit", "--model", "tiny", "--data", "train.jsonl", "--backend", "slurm")
    assert done.returncode == 130
    assert (shell.directory / "cancelled").read_text().split() == ["41"]
    assert not (shell.directory / "runs").exists()


def test_one_damaged_run_does_not_hide_the_others(shell: Shell) -> None:
    fake_slurm(shell)
    name = shell("submit", "--model", "tiny", "--data", "train.jsonl", "--backend", "slurm").stdout.strip()
    for broken, text in (("torn", "{"), ("foreign", '{"backend": "other", "state": "running"}')):
        (shell.directory / "runs" / broken).mkdir()
        (shell.directory / "runs" / broken / "run.json").write_text(text)
    done = shell("list", "--json")
    assert done.returncode == 0
    assert {run["name"] for run in json.loads(done.stdout)} == {name, "foreign"}
    assert "torn" in done.stderr
    assert shell("status", "torn").returncode == 1


def test_a_relative_model_directory_is_found_from_everywhere(shell: Shell) -> None:
    """The job does not start in the directory of its submit."""
    shape = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "vocab_size": 2048, "max_position_embeddings": 2048}
    model = shell.directory / "mymodel"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(shape))
    done = shell("render", "--model", "mymodel", "--data", "train.jsonl", "--backend", "slurm", "-o", "out")
    assert done.returncode == 0, done.stderr
    assert f'model: "{model}"' in (shell.directory / "out" / "config.yaml").read_text()


def test_an_environment_that_cannot_train_is_refused_before_queueing(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fullft_cluster.cli import planning
    from fullft_cluster.errors import UsageError

    monkeypatch.setattr(planning, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"no torch.*fullft-cluster\[train\].*cluster profile"):
        planning.check_environment(sys.executable)
    planning.check_environment("/of/the/profile/bin/python")


def test_tables_are_whole_where_they_are_piped(shell: Shell) -> None:
    fake_slurm(shell)
    name = shell("submit", "--model", "tiny", "--data", "train.jsonl", "--backend", "slurm").stdout.strip()
    message = "rank 0 on node1 exited 1 at step 3: [Errno 28] No space left on device " + "x" * 90
    line = {"attempt": 1, "cause": "crash", "decision": "requeue", "first_step": 1, "last_step": 3, "nodes": ["node1"]}
    (shell.directory / "runs" / name / "attempts.jsonl").write_text(json.dumps({**line, "message": message}) + "\n")
    shown = shell("status", name).stdout
    assert message in shown
    assert "1..3" in shown
    assert shell("logs", name, "--attempt", "9").returncode == 2


def test_output_that_cannot_be_written(shell: Shell) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fullft_cluster", "plan", "--model", "7b", "--json"],
            env=shell.env,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr
