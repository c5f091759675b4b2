"""The noun Checkpoint: how one is committed, found again, set aside and deleted. No torch; workers fill in the files.

The protocol, on any POSIX file system (a parallel one included):

1. Every rank writes its files into ``.partial-step-N-attempt-K/``, which belongs to one attempt alone, fsyncs them and
   hands rank 0 their sizes and digests (`seal_files`). A collective tells rank 0 that all have done so.
2. Rank 0 writes ``MANIFEST.json``, renames the directory to ``step-N`` and, when that name is durable, writes
   ``COMPLETE``, which holds the manifest's digest (`commit`). Each by rename after fsync, the parent synced after it.

So a directory counts only if its ``COMPLETE`` is there, fits its manifest, and every file of the manifest has its size;
before training resumes from it, also its digest. DeepSpeed's own ``latest`` file gives no such promise: it is written
without a barrier or fsync (deepspeed/runtime/engine.py, save_checkpoint), and so names checkpoints with missing shards.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fullft_cluster.errors import Problem, RunFailedError
from fullft_cluster.plan import Frozen
from fullft_cluster.rundir import RunDir, fsync_path, write_atomic

MANIFEST = "MANIFEST.json"
COMPLETE = "COMPLETE"
REASON = "REASON.txt"
HASH_THREADS = 4
"""Files hashed at once by a rank. OpenSSL's SHA-256 does about 1.5 GB/s a core with SHA extensions, 0.5 GB/s without;
hashlib lets go of the GIL, so threads add up until the disk is the limit."""

_NAME = re.compile(r"^step-(\d+)$")
_BAD = re.compile(r"^step-(\d+)\.bad-(\d+)$")
_PARTIAL = re.compile(r"^\.partial-step-(\d+)-attempt-(\d+)$")
_DELETING = ".deleting-"
UNIVERSAL = ".universal-"
"""Prefix of what a checkpoint is converted to while a run resumes at another number of processes."""


class FencedError(RunFailedError):
    """A newer attempt of the run is running: this one must not commit (two attempts would write over each other)."""


class FileEntry(Frozen, frozen=True, kw_only=True):
    """One file of a checkpoint; `path` is relative to it, `rank` wrote it and checks it again."""

    path: str
    bytes: int
    sha256: str
    rank: int


class Manifest(Frozen, frozen=True, kw_only=True):
    """What a checkpoint consists of."""

    version: int = 1
    step: int
    attempt: int
    world_size: int
    created: float
    """Unix time, seconds."""
    versions: dict[str, str]
    """Of the libraries that wrote it."""
    files: tuple[FileEntry, ...]


class _Complete(Frozen, frozen=True, kw_only=True):
    step: int
    manifest_sha256: str


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint on disk. `good`: complete and all sizes right; `reason` says why not."""

    step: int
    path: Path
    good: bool
    reason: str = ""

    def manifest(self) -> Manifest:
        """Read the manifest. Raises OSError or msgspec.DecodeError when it is damaged."""
        return msgspec.json.decode((self.path / MANIFEST).read_bytes(), type=Manifest)


def partial_dir(checkpoints: Path, step: int, attempt: int) -> Path:
    """Return where an attempt gathers the files of a checkpoint before it is committed."""
    return checkpoints / f".partial-step-{step}-attempt-{attempt}"


def begin(checkpoints: Path, step: int, attempt: int) -> Path:
    """Make an empty partial directory (rank 0, before the others write)."""
    partial = partial_dir(checkpoints, step, attempt)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def attempt_fence(run: RunDir, attempt: int) -> Callable[[], None]:
    """Return a check that raises FencedError once run.json names a newer attempt than ours."""

    def check() -> None:
        current = run.read_run().get("attempt", attempt)
        if current > attempt:
            problem = Problem(str(run.path), f"attempt {current} is running, so attempt {attempt} must not write")
            raise FencedError(problem)

    return check


# --- writing


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal_files(partial: Path, files: Iterable[Path], rank: int) -> tuple[FileEntry, ...]:
    """Make this rank's files durable and return their entries. Raises OSError when the disk refuses."""
    paths = sorted(files)

    def seal(path: Path) -> FileEntry:
        fsync_path(path)
        relative = path.relative_to(partial).as_posix()
        return FileEntry(path=relative, bytes=path.stat().st_size, sha256=file_sha256(path), rank=rank)

    with ThreadPoolExecutor(HASH_THREADS) as pool:
        entries = tuple(pool.map(seal, paths))
    for directory in {path.parent for path in paths}:
        fsync_path(directory)
    return entries


def make_manifest(
    step: int, attempt: int, world_size: int, versions: dict[str, str], files: Iterable[FileEntry]
) -> Manifest:
    """Return the manifest of the entries that all ranks have handed in, stamped with the time."""
    ordered = tuple(sorted(files, key=lambda entry: entry.path))
    who = {"step": step, "attempt": attempt, "world_size": world_size}
    return Manifest(**who, created=time.time(), versions=versions, files=ordered)


def commit(checkpoints: Path, manifest: Manifest, fence: Callable[[], None] = lambda: None) -> Path:
    """Commit what lies in the partial directory and return its final path (rank 0, after all have sealed).

    A good checkpoint of the same step stands, and the new one is dropped. Raises FencedError from `fence`, and
    RunFailedError when the files on disk are not those of the manifest.
    """
    partial = partial_dir(checkpoints, manifest.step, manifest.attempt)
    _check_whole(partial, manifest)
    fence()
    raw = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    write_atomic(partial / MANIFEST, raw)
    final = checkpoints / f"step-{manifest.step}"
    if final.exists():
        older = inspect(final)
        if older.good:
            shutil.rmtree(partial)
            return final
        move_aside(final, older.reason)
    partial.rename(final)
    fsync_path(checkpoints)
    fence()
    done = _Complete(step=manifest.step, manifest_sha256=hashlib.sha256(raw).hexdigest())
    write_atomic(final / COMPLETE, msgspec.json.encode(done) + b"\n")
    return final


def _check_whole(partial: Path, manifest: Manifest) -> None:
    """Refuse a partial directory with a file too many or too few: some rank's list is wrong. Raises RunFailedError."""
    on_disk = {path.relative_to(partial).as_posix() for path in partial.rglob("*") if path.is_file()}
    listed = {entry.path for entry in manifest.files}
    if len(listed) != len(manifest.files) or on_disk != listed:
        odd = ", ".join(sorted(on_disk ^ listed)[:5]) or "listed twice"
        raise RunFailedError(Problem(str(partial), f"its files are not those that the ranks have sealed: {odd}"))


# --- reading


def inspect(path: Path) -> Checkpoint:
    """Return the checkpoint in a directory ``step-N``, judged by its completeness and sizes (not by digests)."""
    step = int(path.name.removeprefix("step-"))

    def bad(reason: str) -> Checkpoint:
        return Checkpoint(step, path, good=False, reason=reason)

    try:
        done = msgspec.json.decode((path / COMPLETE).read_bytes(), type=_Complete)
        raw = (path / MANIFEST).read_bytes()
        manifest = msgspec.json.decode(raw, type=Manifest)
    except FileNotFoundError as error:
        missing = Path(str(error.filename)).name
        return bad(f"it has no {missing}" + (": its saving was cut off" if missing == COMPLETE else ""))
    except (OSError, msgspec.DecodeError) as error:
        return bad(f"its {MANIFEST} or {COMPLETE} is damaged ({error})")
    if hashlib.sha256(raw).hexdigest() != done.manifest_sha256:
        return bad(f"its {MANIFEST} is not the one that was committed")
    if manifest.step != step:
        return bad(f"its {MANIFEST} is of step {manifest.step}")
    for entry in manifest.files:
        try:
            size = (path / entry.path).stat().st_size
        except OSError:
            return bad(f"{entry.path} is missing")
        if size != entry.bytes:
            return bad(f"{entry.path} has {size} bytes instead of {entry.bytes}")
    return Checkpoint(step, path, good=True)


def verify_files(path: Path, entries: Iterable[FileEntry]) -> list[str]:
    """Return what is wrong with files of a checkpoint by their digests; nothing when all are as committed."""

    def check(entry: FileEntry) -> str:
        try:
            wrong = file_sha256(path / entry.path) != entry.sha256
        except OSError as error:
            return f"{entry.path} cannot be read ({error.strerror})"
        return f"{entry.path} does not have the digest of its {MANIFEST}" if wrong else ""

    with ThreadPoolExecutor(HASH_THREADS) as pool:
        return [problem for problem in pool.map(check, entries) if problem]


def list_checkpoints(checkpoints: Path) -> list[Checkpoint]:
    """Return all checkpoints by step, those set aside included (not good, with their reason)."""
    found = []
    for path in checkpoints.iterdir() if checkpoints.is_dir() else ():
        if _NAME.match(path.name):
            found.append(inspect(path))
        elif match := _BAD.match(path.name):
            note = path / REASON
            reason = note.read_text().strip() if note.exists() else "set aside, reason unknown"
            found.append(Checkpoint(int(match[1]), path, good=False, reason=reason))
    return sorted(found, key=lambda checkpoint: (checkpoint.step, checkpoint.path.name))


def newest_good(
    checkpoints: Path, *, set_aside: bool, verify: Callable[[Checkpoint], str] | None = None
) -> Checkpoint | None:
    """Return the newest checkpoint that holds, or None.

    `verify` looks deeper (digests) at a candidate and returns what is wrong with it, or "". With `set_aside`, the bad
    ones that are newer are renamed to ``step-N.bad-K`` with their reason; never while an older attempt may be writing.
    """
    for found in reversed(list_checkpoints(checkpoints)):
        if _BAD.match(found.path.name):
            continue
        reason = found.reason or (verify(found) if verify else "")
        if not reason:
            return found
        if set_aside:
            move_aside(found.path, reason)
    return None


def move_aside(path: Path, reason: str) -> Path:
    """Rename a bad checkpoint out of the way, with a note of the reason, and return its new path."""
    number = 1
    while (target := path.with_name(f"{path.name}.bad-{number}")).exists():
        number += 1
    path.rename(target)
    fsync_path(path.parent)
    write_atomic(target / REASON, reason + "\n")
    return target


def retain(checkpoints: Path, limit: int, attempt: int) -> list[int]:
    """Delete all but the newest `limit` good checkpoints, and the partial directories of older attempts; return steps.

    Call it only after a commit. A checkpoint leaves the listing by one rename before its first file goes, so a kill in
    the middle never leaves half of one under a good name. Raises ValueError for a limit below 1.
    """
    if limit < 1:
        raise ValueError(f"the last good checkpoint is never deleted, so the limit is at least 1, not {limit}")
    deleted = []
    for old in [found for found in list_checkpoints(checkpoints) if found.good][:-limit]:
        target = checkpoints / f"{_DELETING}{old.path.name}"
        shutil.rmtree(target, ignore_errors=True)
        old.path.rename(target)
        fsync_path(checkpoints)
        deleted.append(old.step)
    for path in list(checkpoints.iterdir()):
        match = _PARTIAL.match(path.name)
        if path.name.startswith((_DELETING, UNIVERSAL)) or (match and int(match[2]) < attempt):
            shutil.rmtree(path, ignore_errors=True)
    return deleted
