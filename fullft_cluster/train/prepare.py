"""Tokenise and pack the training text once, into a cache that the workers only map.

    python -m fullft_cluster.train.prepare --run RUN

The cache lies under a key made of the text's and the tokenizer's digests and the settings, so a change of any makes a
new one. It is built in a directory of its own and renamed, so two preparations of the same key do not disturb each
other and nothing half-written is ever taken for a cache.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import os
import shutil
import socket
import sys
import traceback
from array import array
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from fullft_cluster.checkpoints import file_sha256
from fullft_cluster.config import Config
from fullft_cluster.config_load import read_config
from fullft_cluster.errors import FullftError, Problem, UsageError
from fullft_cluster.model import load_model
from fullft_cluster.rows import read_texts
from fullft_cluster.rundir import RunDir, fsync_path, write_atomic, write_json
from fullft_cluster.train import data
from fullft_cluster.train.tokenizer import load_tokenizer, tokenizer_digest

ROWS_AT_ONCE = 2048
"""Rows handed to the tokenizer together; its threads share them."""


def cache_key(text: Path, tokenizer: Any, seq_len: int) -> str:
    """Return the name of the cache of this text with this tokenizer and these settings."""
    parts = {
        "version": 1,
        "text": file_sha256(text),
        "tokenizer": tokenizer_digest(tokenizer),
        "eos": tokenizer.eos_token_id,
        "seq_len": seq_len,
    }
    return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()[:32]


def encode(texts: Iterable[str], tokenizer: Any) -> Iterator[list[int]]:
    """Yield the token ids of each text, EOS at the end. Batches run on all cores (tokenizers' own threads)."""
    backend, eos = tokenizer.backend_tokenizer, tokenizer.eos_token_id
    backend.no_truncation()
    backend.no_padding()
    iterator = iter(texts)
    while rows := list(islice(iterator, ROWS_AT_ONCE)):
        for encoding in backend.encode_batch_fast(rows):
            ids: list[int] = encoding.ids
            yield ids if ids and ids[-1] == eos else [*ids, eos]


def build(directory: Path, documents: Iterable[list[int]], meta: data.CacheMeta, vocab_size: int) -> data.CacheMeta:
    """Write all files of a cache but its mark; return the meta with its counts filled in. Raises UsageError."""
    starts = array("q")
    tokens = 0
    with (directory / data.TOKENS).open("wb") as file:
        for ids in documents:
            starts.append(tokens)
            tokens += len(ids)
            block = np.asarray(ids, dtype=np.uint32)
            if (largest := int(block.max())) >= vocab_size:
                what = f"token {largest} is outside the model's vocabulary of {vocab_size}"
                raise UsageError(Problem("tokenizer", what, "Use the tokenizer that belongs to the model."))
            file.write(block.astype(meta.dtype).tobytes())
        file.flush()
        os.fsync(file.fileno())
    offsets = np.frombuffer(starts, dtype=np.int64)
    valid = data.valid_labels(offsets, tokens, meta.seq_len)
    if not valid.any():
        raise UsageError(Problem("data.train", "no two tokens of a row share a block, so there is nothing to learn"))
    for name, values in ((data.STARTS, offsets), (data.VALID, valid)):
        with (directory / name).open("wb") as file:
            np.save(file, values)
            file.flush()
            os.fsync(file.fileno())
    return msgspec.structs.replace(meta, tokens=tokens, rows=len(offsets), blocks=len(valid))


def make_cache(root: Path, text: Path, tokenizer: Any, *, seq_len: int, vocab_size: int) -> Path:
    """Return the directory of the cache, which is built unless it is there. Raises UsageError for bad rows."""
    key = cache_key(text, tokenizer, seq_len)
    final = root / key
    if data.is_complete(final):
        return final
    root.mkdir(parents=True, exist_ok=True)
    work = root / f".building-{key}-{socket.gethostname()}-{os.getpid()}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    empty = data.CacheMeta(
        key=key, dtype="uint16" if vocab_size <= 2**16 else "uint32", tokens=0, rows=0, blocks=0, seq_len=seq_len,
        pad_id=pad if pad < vocab_size else tokenizer.eos_token_id,
    )  # fmt: skip
    try:
        meta = build(work, encode(read_texts(text), tokenizer), empty, vocab_size)
        write_atomic(work / data.META, msgspec.json.format(msgspec.json.encode(meta), indent=2) + b"\n")
        write_atomic(work / data.COMPLETE, b"")
        _publish(work, final)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return final


def _publish(work: Path, final: Path) -> None:
    """Rename a built cache to its name, unless another preparation was faster."""
    while not data.is_complete(final):
        # Looked at twice: another preparation may just have published it. Damaged from outside, it can be made again.
        if final.exists() and not data.is_complete(final):
            aside = work.with_name(f"{work.name}-damaged")
            shutil.rmtree(aside, ignore_errors=True)
            with contextlib.suppress(FileNotFoundError):  # another preparation was faster with this, too
                final.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
        try:
            work.rename(final)
            break  # and no further look: its work is gone
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
    fsync_path(final.parent)


def fetch_weights(config: Config) -> None:
    """Bring weights that are named by a hub id into the local cache: compute nodes often have no internet."""
    reference = config.weights
    if not reference or reference == "random" or Path(reference).exists():
        return
    from huggingface_hub import snapshot_download

    beside = ["*.json", "*.model", "*.txt", "*.jinja"]
    try:
        found = snapshot_download(reference, allow_patterns=["*.safetensors", *beside])
        if not any(Path(found).glob("*.safetensors")):
            snapshot_download(reference, allow_patterns=["pytorch_model*.bin"])
    except (OSError, ValueError) as error:
        fix = "Fetch it where there is internet: hf download " + reference
        raise UsageError(Problem("weights", f"{reference} cannot be fetched ({error})", fix)) from None


def prepare(run: RunDir) -> dict[str, Any]:
    """Prepare a run's data and return what data.json says. Raises UsageError."""
    config = read_config(run.config)
    if not config.data.train:
        raise UsageError(Problem("data.train", "is not set", "Write --data FILE.jsonl"))
    fetch_weights(config)
    tokenizer = load_tokenizer(config)
    cache = make_cache(
        Path(config.data.cache_dir) if config.data.cache_dir else run.path.parent / ".cache",
        Path(config.data.train),
        tokenizer,
        seq_len=config.train.seq_len,
        vocab_size=load_model(config.model or "").vocab_size,
    )
    meta = data.read_meta(cache)
    made = {
        "cache": str(cache), "key": meta.key, "blocks": meta.blocks, "tokens": meta.tokens, "rows": meta.rows,
        "seq_len": meta.seq_len, "validation": None, "end_of_turn_id": None,
    }  # fmt: skip
    write_json(run.data, made)
    return made


def prepare_run(run_dir: str) -> dict[str, Any]:
    """Prepare a run's data (the entry for submitit). On an error exits/prepare.json says why, and it is raised.

    A directory that is no run stays as it is.
    """
    run = RunDir(Path(run_dir))
    if not run.config.is_file():
        fix = "Give the directory of a run that was submitted."
        raise UsageError(Problem(run_dir, "is no run: there is no config.yaml in it", fix))
    report = run.path / "exits" / "prepare.json"
    report.parent.mkdir(parents=True, exist_ok=True)
    try:
        made = prepare(run)
    except Exception as error:
        problems = error.problems if isinstance(error, FullftError) else (f"{type(error).__name__}: {error}",)
        kind = "data" if isinstance(error, UsageError) else "other"
        code = error.exit_code if isinstance(error, FullftError) else 1
        write_json(report, {"exit_code": code, "kind": kind, "errors": [str(problem) for problem in problems]})
        raise
    write_json(report, {"exit_code": 0, "kind": "done", "errors": []})
    return made


def main() -> int:
    """Run from a command line; return the exit code: 0, 2 for the user's mistakes, 1 for anything else."""
    parser = argparse.ArgumentParser(description="Tokenise and pack the training text of a run.")
    parser.add_argument("--run", required=True, metavar="RUN", help="the run directory")
    try:
        made = prepare_run(parser.parse_args().run)
    except FullftError as error:
        print("\n".join(map(str, error.problems)), file=sys.stderr)
        return error.exit_code
    except Exception:
        traceback.print_exc()
        return 1
    print(f"{made['rows']} rows, {made['tokens']} tokens, {made['blocks']} blocks of {made['seq_len']} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())
