"""The command line for Kubernetes where there is no cluster: what is told before anything is asked. Whole processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fake_api import Answer, Asked, FakeApi, kubeconfig, refusal
from test_imports import WITHOUT, run_python

ROW = '{"text": "Two nodes are better than one."}\n'
IMAGE = "registry.example.org/fullft-cluster:0.1.0"


class Shell:
    """Runs the command in a directory of its own, with a kubeconfig that leads to a port where nobody listens."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "train.jsonl").write_text(ROW * 20)
        (directory / "kubeconfig").write_text(json.dumps(kubeconfig("http://127.0.0.1:1", namespace="nlp")))
        self.env = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(directory),
            "HF_HUB_OFFLINE": "1",
            "KUBECONFIG": str(directory / "kubeconfig"),
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }

    def __call__(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fullft_cluster", *arguments]
        done = subprocess.run(
            command, cwd=self.directory, env=self.env, capture_output=True, text=True, timeout=90, check=False
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done

    def job(self, *more: str, data: str | None = None) -> list[str]:
        source = data or str(self.directory / "train.jsonl")
        where = ["--data", source, "--runs-dir", "/shared/runs", "--image", IMAGE]
        return ["--backend", "kubernetes", "--model", "tiny", "--cluster", "local", *where, *more]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def test_a_dry_run_prints_what_render_prints_and_asks_nobody(shell: Shell) -> None:
    dry = shell("submit", *shell.job(), "--dry-run")
    assert dry.stdout == shell("render", *shell.job()).stdout != ""
    assert "nothing was changed" in dry.stderr
    assert shell("submit", *shell.job(), "--dry-run=client").stdout == dry.stdout
    assert sorted(path.name for path in shell.directory.iterdir()) == ["kubeconfig", "train.jsonl"]


@pytest.mark.parametrize(
    ("more", "namespace"),
    [([], "nlp"), (["--context", "there"], "elsewhere"), (["--namespace", "mine"], "mine"), (["-n", "mine"], "mine")],
)
def test_the_namespace_is_the_contexts_unless_it_is_given(shell: Shell, more: list[str], namespace: str) -> None:
    pytest.importorskip("kubernetes", reason="the kubernetes extra is not installed")
    made = list(yaml.safe_load_all(shell("render", *shell.job(*more)).stdout))
    assert {one["metadata"]["namespace"] for one in made} == {namespace}
    (files,) = (one["data"] for one in made if one["metadata"]["name"] == "tiny-train-files")
    assert yaml.safe_load(files["config.yaml"])["kubernetes"]["namespace"] == namespace


def test_without_a_kubeconfig_manifests_are_for_the_namespace_default(shell: Shell) -> None:
    shell.env["KUBECONFIG"] = str(shell.directory / "missing")
    assert 'namespace: "default"' in shell("render", *shell.job()).stdout
    assert "no context 'x': there is no kubeconfig" in shell("render", *shell.job("--context", "x"), code=2).stderr
    assert "no cluster is configured" in shell("submit", *shell.job(), code=4).stderr


@pytest.mark.parametrize("command", ["status", "logs", "cancel", "resume", "delete"])
def test_a_run_that_is_not_here_may_be_in_a_cluster(shell: Shell, command: str) -> None:
    told = shell(command, "nowhere", code=2).stderr
    assert "no such run in runs" in told and "--backend kubernetes looks for it in the cluster" in told


def test_options_that_do_not_go_together(shell: Shell) -> None:
    told = shell("status", "x", "--backend", "slurm", "--context", "c", code=2).stderr
    assert "--context are of Kubernetes, and --backend is slurm" in told
    slurm = ["--model", "tiny", "--cluster", "local", "--data", "train.jsonl"]
    told = shell("submit", *slurm, "--backend", "slurm", "--dry-run=server", code=2).stderr
    assert "--dry-run=server: asks an API server" in told
    told = shell("logs", "x", "--backend", "kubernetes", "--attempt", "2", code=2).stderr
    assert "RUN/logs on the volume" in told
    told = shell("logs", "x", "--backend", "kubernetes", "--previous", "--follow", code=2).stderr
    assert "cannot be followed" in told
    told = shell("logs", "x", "--previous", code=2).stderr
    assert "--previous: is of Kubernetes" in told


SLURM_FLAGS = ("--partition", "gpu", "--account", "x", "--qos", "high", "--time", "1:00:00")
KUBERNETES_FLAGS = ("--kind", "job", "--image", IMAGE, "--namespace", "mine", "--context", "there")


@pytest.mark.parametrize("command", ["submit", "render", "validate"])
@pytest.mark.parametrize(
    ("backend", "given", "words"),
    [
        (
            ["--backend", "kubernetes"],
            SLURM_FLAGS,
            "is a flag for SLURM, and the backend is kubernetes. Write --set kub",
        ),
        (["--backend", "local"], SLURM_FLAGS, "is a flag for SLURM, and the backend is local. Leave it out"),
        (["--backend", "slurm"], KUBERNETES_FLAGS, "is a flag for Kubernetes, and the backend is slurm. Leave it out"),
        ([], KUBERNETES_FLAGS, "is a flag for Kubernetes, and no backend is named, so it is slurm. Leave it out"),
    ],
)
def test_flags_of_another_backend_are_refused_all_at_once(
    shell: Shell, command: str, backend: list[str], given: tuple[str, ...], words: str
) -> None:
    told = shell(command, "--model", "tiny", "--data", "train.jsonl", *backend, *given, code=2).stderr
    assert [line for line in told.splitlines() if words in line] == told.splitlines()
    assert [line.split(":")[1].strip() for line in told.splitlines()] == list(given[::2])


def test_sections_of_another_backend_in_a_file_or_by_set_are_no_error(shell: Shell) -> None:
    both = "slurm: {partition: gpu, time: '1:00:00'}\nkubernetes: {kind: job, namespace: mine}\n"
    (shell.directory / "both.yaml").write_text(both)
    more = ("--config", "both.yaml", "--set", "slurm.account=x")
    assert 'namespace: "mine"' in shell("render", *shell.job(*more)).stdout
    slurm = shell("render", "--model", "tiny", "--data", "train.jsonl", *more, "--set", "kubernetes.queue=q")
    assert "#SBATCH --partition=gpu" in slurm.stdout


def test_flags_of_another_backend_are_told_with_what_else_is_wrong(shell: Shell) -> None:
    told = shell("submit", "--backend", "kubernetes", "--partition", "gpu", "--set", "train.lr", code=2).stderr
    assert "'train.lr' is not section.key=value" in told and "--partition: is a flag for SLURM" in told


def test_a_run_on_this_machine_has_no_objects_to_delete(shell: Shell) -> None:
    run = shell.directory / "runs" / "here"
    run.mkdir(parents=True)
    (run / "run.json").write_text('{"backend": "local", "state": "completed"}')
    assert "has no objects in a cluster" in shell("delete", "here", code=2).stderr
    listed = json.loads(shell("list", "--json").stdout)
    assert [one["name"] for one in listed] == ["here"]
    assert json.loads(shell("list", "--json", "--backend", "slurm").stdout) == []


def test_a_run_whose_volume_is_mounted_here_leads_to_its_cluster(shell: Shell) -> None:
    """Its run directory says where it is; the cluster that is configured does not answer."""
    run = shell.directory / "runs" / "there"
    run.mkdir(parents=True)
    (run / "run.json").write_text('{"backend": "kubernetes", "state": "running"}')
    (run / "config.yaml").write_text("kubernetes: {namespace: nlp}\n")
    shell.env["KUBECONFIG"] = str(shell.directory / "missing")
    assert "no cluster is configured" in shell("status", "there", code=4).stderr


def test_data_on_a_volume_that_is_not_mounted_here(shell: Shell) -> None:
    done = shell("render", *shell.job(data="/shared/runs/rows.jsonl"))
    assert "data: /shared/runs/rows.jsonl: not seen from here: its rows are counted, and checked" in done.stderr
    weights = shell("render", *shell.job("--weights", "/shared/runs/llama"))
    assert "not seen from here, so the pods have to" in weights.stderr
    told = shell("render", *shell.job(data="/elsewhere/rows.jsonl"), code=2).stderr
    assert "/elsewhere/rows.jsonl: no such file" in told
    mounted = shell.directory / "runs"
    mounted.mkdir()
    here = shell.job("--runs-dir", str(mounted), data=str(mounted / "rows.jsonl"))
    assert "rows.jsonl: no such file" in shell("render", *here, code=2).stderr


def test_every_right_that_is_missing_is_told_at_once_whether_a_name_is_given_or_not(shell: Shell) -> None:
    pytest.importorskip("kubernetes", reason="the kubernetes extra is not installed")

    def nothing(asked: Asked) -> Answer:
        if asked.path.endswith("selfsubjectaccessreviews"):
            return Answer(201, {"status": {"allowed": False}})
        return refusal(403, f'User "eve" cannot {asked.method.lower()} resource "{asked.path}"', "Forbidden")

    fake = FakeApi(shell.directory)  # writes the kubeconfig
    fake.answers = [nothing]
    try:
        for name in ([], ["--name", "mine"]):
            told = shell("submit", *shell.job("--weights", "random", "-n", "nope", *name), code=4).stderr
            assert "you may not, in namespace nope: get, create, patch, delete" in told
            assert "pytorchjobs.kubeflow.org" in told and "networkpolicies.networking.k8s.io" in told
            assert "Is there a namespace 'nope' at all?" in told
    finally:
        fake.close()


def test_without_the_client_submit_says_which_extra_to_install(shell: Shell) -> None:
    argv = ["fullft-cluster", "submit", *shell.job()]
    done = run_python(WITHOUT.format(blocked={"kubernetes"}, argv=argv), cwd=shell.directory)
    assert done.returncode == 2, done.stderr
    assert "pip install 'fullft-cluster[kubernetes]'" in done.stderr
    argv[1] = "render"
    done = run_python(WITHOUT.format(blocked={"kubernetes"}, argv=argv), cwd=shell.directory)
    assert done.returncode == 0, done.stderr
    assert os.linesep in done.stdout
