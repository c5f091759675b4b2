"""A login node has no torch: what it runs must neither import nor need what only training uses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRAINING = {"torch", "transformers", "deepspeed", "datasets", "tokenizers", "safetensors", "numpy"}
SCHEDULERS = {"submitit", "kubernetes"}

# Imports of BLOCKED fail as on a machine without them; then the command line runs as the installed script runs it.
WITHOUT = """
import sys
from importlib.abc import MetaPathFinder

class Blocked(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
sys.argv = {argv!r}
from fullft_cluster.cli.main import main
sys.exit(main())
"""


def run_python(code: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "module",
    [
        "cli.main",
        "planner",
        "plan_report",
        "plan_html",
        "inventory",
        "measured",
        "render",
        "rows",
        "checkpoints",
        "status",
        "runtime.supervisor",
        "runtime.node",
    ],
)
def test_importing_the_core_imports_nothing_of_training_or_of_a_scheduler(module: str) -> None:
    done = run_python(f"import fullft_cluster.{module}, sys; print(*sorted(sys.modules))")
    assert done.returncode == 0, done.stderr
    assert not {name.partition(".")[0] for name in done.stdout.split()} & (TRAINING | SCHEDULERS)


def cli_without(blocked: set[str], *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run_python(WITHOUT.format(blocked=blocked, argv=["fullft-cluster", *arguments]), cwd)


def test_a_login_node_without_torch_plans(tmp_path: Path) -> None:
    done = cli_without(TRAINING | SCHEDULERS, "plan", "--model", "65b", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"]["parameters"] == 65_285_660_672


def test_a_login_node_without_torch_renders(tmp_path: Path) -> None:
    data = tmp_path / "train.jsonl"
    data.write_text('{"text": "one"}\n')
    arguments = ("submit", "--model", "7b", "--data", str(data), "--backend", "slurm", "--dry-run")
    done = cli_without(TRAINING | SCHEDULERS, *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("#!")


def test_a_login_node_without_torch_lists_runs(tmp_path: Path) -> None:
    done = cli_without(TRAINING | SCHEDULERS, "list", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
