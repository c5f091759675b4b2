"""Tokenise and pack the training rows once, into a cache that the workers only map.

    python -m fullft_cluster.train.prepare --run RUN

The cache lies under a key made of the digests of the files, the tokenizer and the settings, so a change of any makes a
new one. Tokenised rows are kept beside it while it is made, so a preparation that was killed goes on where it was; the
cache itself is built in a directory of its own and renamed, so nothing half-written is ever taken for one.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any

from fullft_cluster.config import Config
from fullft_cluster.config_load import read_config
from fullft_cluster.errors import FullftError, Problem, UsageError
from fullft_cluster.rundir import RunDir, write_json
from fullft_cluster.train import cache_writer, data
from fullft_cluster.train.build import build
from fullft_cluster.train.cache_key import cache_key
from fullft_cluster.train.encoder import EncoderSettings
from fullft_cluster.train.tokenizer import encoder_settings, load_tokenizer, padding_id
from fullft_cluster.train.tracking import check_installed


def make_cache(root: Path, config: Config, encoder: EncoderSettings, pad_id: int) -> Path:
    """Return the directory of the cache, which is built unless it is there. Raises UsageError for bad rows."""
    seq_len, seed = config.train.seq_len, config.train.seed
    key = cache_key(config.data, encoder, seq_len=seq_len, seed=seed)
    final = root / key
    if data.is_complete(final):
        return final
    root.mkdir(parents=True, exist_ok=True)
    shards = root / f".shards-{key}"
    work = cache_writer.scratch(final)
    meta = data.CacheMeta(
        key=key, dtype="uint16" if encoder.vocab_size <= 2**16 else "uint32", seq_len=seq_len, pad_id=pad_id
    )
    try:
        build(work, shards, config, encoder, meta)
        cache_writer.publish(work, final)
    except UsageError:  # what is there is of rows, or a template, that will be others
        shutil.rmtree(shards, ignore_errors=True)
        raise
    except OSError:
        if data.is_complete(final):  # another preparation was faster, and has cleared up
            return final
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    cache_writer.clear(final)
    return final


def fetch_weights(config: Config) -> None:
    """Bring weights and tokenizer named by a hub id into the local cache: compute nodes often have no internet.

    Raises UsageError.
    """
    from huggingface_hub import snapshot_download

    beside = ["*.json", "*.model", "*.txt", "*.jinja"]
    for key, patterns in (("weights", ["*.safetensors"]), ("tokenizer", [])):
        reference = getattr(config, key)
        if not reference or reference == "random" or Path(reference).exists():
            continue
        try:
            found = snapshot_download(reference, allow_patterns=[*patterns, *beside])
            if patterns and not any(Path(found).glob("*.safetensors")):
                snapshot_download(reference, allow_patterns=["pytorch_model*.bin"])
        except (OSError, ValueError) as error:
            fix = "Fetch it where there is internet: hf download " + reference
            raise UsageError(Problem(key, f"{reference} cannot be fetched ({error})", fix)) from None


def prepare(run: RunDir) -> dict[str, Any]:
    """Prepare a run's data and return what data.json says. Raises UsageError."""
    config = read_config(run.config)
    check_installed(config)  # of the workers: here it is known before GPUs are held
    fetch_weights(config)
    root = Path(config.data.cache_dir) if config.data.cache_dir else run.path.parent / ".cache"
    tokenizer = load_tokenizer(config)
    encoder = encoder_settings(config, tokenizer)
    made = told(make_cache(root, config, encoder, padding_id(tokenizer, encoder)))
    write_json(run.data, made)
    return made


def told(cache: Path) -> dict[str, Any]:
    """Return what data.json says of a cache."""
    meta = data.read_meta(cache)
    validation = None
    if meta.validation:
        held_out = cache / data.VALIDATION
        validation = {"cache": str(held_out), **_counts(data.read_meta(held_out))}
    dropped = {reason: entry["rows"] for reason, entry in meta.tally["dropped"].items()}
    return {
        "cache": str(cache), "key": meta.key, "seq_len": meta.seq_len, **_counts(meta), "dropped": dropped,
        **{name: meta.tally[name] for name in ("formats", "split", "truncated", "pieces_dropped")},
        "validation": validation, "streaming": meta.streaming, "end_of_turn_id": meta.end_of_turn_id,
    }  # fmt: skip


def _counts(meta: data.CacheMeta) -> dict[str, Any]:
    return {"rows": meta.rows, "blocks": meta.blocks, "tokens": meta.tokens, "labels": meta.labels}


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
    print("\n".join(in_words(made)))
    return 0


def in_words(made: dict[str, Any]) -> list[str]:
    """Return what data.json says in sentences: what was made, and every row that is not in it, with where it is."""
    lines = [f"{made['rows']} rows, {made['tokens']} tokens, {made['blocks']} blocks of {made['seq_len']} tokens"]
    if made["validation"]:
        lines.append(
            f"held out for validation: {made['validation']['rows']} rows, {made['validation']['tokens']} tokens"
        )
    for reason, entry in data.read_meta(Path(made["cache"])).tally["dropped"].items():
        more = f", and {entry['rows'] - len(entry['where'])} more" if entry["rows"] > len(entry["where"]) else ""
        lines.append(f"dropped, {reason}: {entry['rows']} rows ({', '.join(entry['where'])}{more})")
    told = (("split", "rows split, being longer than a sequence"), ("truncated", "rows truncated"))
    lines += [f"{made[name]} {words}" for name, words in told if made[name]]
    return lines


if __name__ == "__main__":
    sys.exit(main())
