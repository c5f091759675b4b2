"""The wheel works without the checkout: templates, manifests and configs travel inside it and are found there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("templates", "manifests", "configs")


def run(*command: str | Path, cwd: Path) -> str:
    # Nothing of the checkout may leak into the process: neither its folder nor PYTHONPATH.
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel; its dependencies are those of this one, so no network is needed."""
    home = tmp_path_factory.mktemp("elsewhere") / "venv"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel, cwd=home)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home).strip())
    # A plain path in a .pth file adds a folder without reading its .pth files: an editable install there stays unseen.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home


def test_every_template_manifest_and_config_is_inside(wheel: Path) -> None:
    listed = subprocess.run(["git", "ls-files", *FOLDERS], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout: nothing says which files belong to it")
    tracked = [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]
    assert any(name.endswith("7b.yaml") for name in tracked)
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
        for name in tracked:
            assert archive.read(f"fullft_cluster/_share/{name}") == (ROOT / name).read_bytes()
    assert not [name for name in inside if name.startswith(("tests/", "benchmarks/")) or name.endswith(".pyc")]


def test_it_plans_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    where = run(
        installed / "bin" / "python", "-c", "import fullft_cluster; print(fullft_cluster.__file__)", cwd=tmp_path
    )
    assert Path(where.strip()).is_relative_to(installed)
    plan = json.loads(run(installed / "bin" / "fullft-cluster", "plan", "--model", "65b", "--json", cwd=tmp_path))
    assert plan["model"]["parameters"] == 65_285_660_672
    assert 16 <= plan["gpus"] <= 32


def test_it_renders_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    command = ("submit", "--model", "65b", "--data", "train.jsonl", "--backend", "slurm", "--dry-run")
    script = run(installed / "bin" / "fullft-cluster", *command, cwd=tmp_path)
    assert script.startswith("#!")
    assert "#SBATCH --nodes=" in script
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.jsonl"]
