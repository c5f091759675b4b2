"""Says before anything is queued whether the weights can be found, here or (asked at a submit) on the hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.hub import HUB_ID, HubRefusalError, ask, is_offline
from fullft_cluster.hub_cache import hub_cache, snapshots
from fullft_cluster.model import ModelSpec, differences, read_hf_config
from fullft_cluster.plan import Frozen

RANDOM = "random"
MOST_INDEX_BYTES = 1 << 26
"""No index of shards is larger; that of a 65B model is under 100 kB."""
_WEIGHT_FILES = (
    # In the order in which from_pretrained looks (transformers, modeling_utils.py, `_get_resolved_checkpoint_files`).
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_CONVERT = "make one from tokenizer.model: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"


class Weights(Frozen, frozen=True):
    """Where the weights are."""

    ref: str
    """``random``, an absolute path, or a hub id."""
    kind: Literal["random", "path", "cache", "hub"]
    directory: str | None = None
    """Where they lie on this machine, if they do."""
    note: str = ""


def find_weights(
    ref: str | None, tokenizer: str | None, environ: Mapping[str, str], *, ask_hub: bool = True
) -> Weights:
    """Return where the weights of a run are.

    ``tokenizer`` is the directory of a tokenizer that the model preset brings (then the weights need none). Only with
    ``ask_hub`` is there a look beyond this machine's files. Raises UsageError when the weights cannot be found from
    here, with what to do.
    """
    if ref is None:
        fix = "Write --weights PATH, --weights ORG/NAME, or --weights random to train from scratch."
        raise UsageError(Problem("weights", "this model names no weights", fix))
    if ref == RANDOM:
        if tokenizer is None:
            what = "`random` needs a tokenizer, which only the presets tiny and small bring; others take their weights'"
            fix = "Use --model tiny or small, or name one: --set tokenizer=DIR. Or give as weights what "
            fix += "`model.save_pretrained` and `tokenizer.save_pretrained` wrote for a model initialised at random."
            raise UsageError(Problem("weights", what, fix))
        return Weights(ref=RANDOM, kind="random")
    try:
        path = Path(ref).expanduser()
        if path.exists() or not HUB_ID.fullmatch(ref):
            return _local(path, tokenizer)
    except (OSError, RuntimeError) as error:  # a name too long, a directory that is closed to us, an unknown ~user
        said = getattr(error, "strerror", None) or str(error)
        raise UsageError(Problem("weights", f"{ref!r} cannot be looked at: {said}", "Check the path.")) from None
    return _cached_or_on_hub(ref, tokenizer, environ, ask_hub=ask_hub)


def check_tokenizer(ref: str | None, environ: Mapping[str, str]) -> str:
    """Return what the user should know of a tokenizer that is named beside the weights, or nothing.

    Raises UsageError when it is a directory without one, or neither a directory nor a hub id.
    """
    if ref is None:
        return ""
    where = "tokenizer"
    try:
        path = Path(ref).expanduser()
        if path.exists() or not HUB_ID.fullmatch(ref):
            if not path.is_dir():
                raise UsageError(Problem(where, f"{ref!r}: no such directory, and not a hub id", "Give one with it."))
            if not _is_filled(path / "tokenizer.json"):
                fix = f"Training takes fast tokenizers: {_CONVERT}."
                raise UsageError(Problem(where, f"{ref!r} has no tokenizer.json", fix))
            return ""
    except (OSError, RuntimeError) as error:
        raise UsageError(Problem(where, f"{ref!r} cannot be looked at: {error}", "Check the path.")) from None
    if any(_is_filled(snapshot / "tokenizer.json") for snapshot in snapshots(ref, environ)):
        return ""
    absent = f"tokenizer {ref} is not in the cache {hub_cache(environ)}"
    if is_offline(environ):
        fix = f"Run `hf download {ref}` where there is internet, or give a directory."
        raise UsageError(Problem(where, f"{absent}, and HF_HUB_OFFLINE is set", fix))
    return f"{absent}: the preparation downloads it, so its node needs internet"


def read_template(path: str) -> str:
    """Return the text of data.chat_template. Raises UsageError when it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        fix = "data.chat_template takes the path of a Jinja file."
        raise UsageError(Problem(path, f"the chat template cannot be read ({said})", fix)) from None


def check_same_model(weights: Weights, model: ModelSpec) -> None:
    """Raise UsageError with every difference when the weights at hand are of another shape than the model."""
    if weights.directory is None:
        return
    path = Path(weights.directory) / "config.json"
    found = differences(model, read_hf_config(path))
    if found:
        fix = f"Give the weights that belong to {model.name}, or write --model {weights.ref}."
        raise UsageError(Problem("weights", f"{path} is of another model: {'; '.join(found)}", fix))


# --- on this machine


def lacking(directory: Path, tokenizer: str | None) -> list[str]:
    """Return what a directory lacks for training to start from it, in words; links must lead somewhere."""
    config = [] if _is_filled(directory / "config.json") else ["config.json"]
    fast = tokenizer is not None or _is_filled(directory / "tokenizer.json")
    return [*config, *_lacking_weights(directory), *([] if fast else ["tokenizer.json"])]


def _lacking_weights(directory: Path) -> list[str]:
    """Return what lacks of the weights themselves: of the first file that from_pretrained would take."""
    name = next((name for name in _WEIGHT_FILES if (directory / name).is_file()), None)
    if name is None:
        return ["model.safetensors or an index of shards"]
    path = directory / name
    if not name.endswith(".index.json"):
        return [] if _is_filled(path) else [f"{name} (it is empty)"]
    shards = _shards(path)
    if not shards:
        return [f"{name} (it lists no shards)"]
    missing = [shard for shard in shards if not _is_filled(directory / shard)]
    return missing if len(missing) <= 4 else [*missing[:3], f"{len(missing) - 3} more shards"]


def _shards(index: Path) -> list[str]:
    """Return the files that an index names; none when it is no index."""
    try:
        with index.open("rb") as file:
            found = json.loads(file.read(MOST_INDEX_BYTES))["weight_map"]
        return sorted({str(shard) for shard in found.values() if "\0" not in str(shard)})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


def _is_filled(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _local(path: Path, tokenizer: str | None) -> Weights:
    fix = "Give a directory that from_pretrained loads."
    if not path.is_dir():
        what = "is a file, not a directory" if path.exists() else "no such directory, and not a hub id"
        raise UsageError(Problem("weights", f"{str(path)!r}: {what}", fix))
    lacks = lacking(path, tokenizer)
    if lacks:
        if "tokenizer.json" in lacks:
            fix += f" Training takes fast tokenizers: {_CONVERT}."
        raise UsageError(Problem("weights", f"{str(path)!r} lacks {', '.join(lacks)}", fix))
    return Weights(ref=str(path.resolve()), kind="path", directory=str(path.resolve()))


def _cached_or_on_hub(ref: str, tokenizer: str | None, environ: Mapping[str, str], *, ask_hub: bool) -> Weights:
    """Look into the cache; then ask the hub. Offline, or out of reach, that is an error to mend before queueing."""
    cache = hub_cache(environ)
    absent = f"not in the cache {cache}"
    for snapshot in snapshots(ref, environ):
        try:
            lacks = lacking(snapshot, tokenizer) if snapshot.is_dir() else ["the snapshot"]
        except OSError as error:
            lacks = [f"what can be read ({error.strerror})"]
        if not lacks:
            return Weights(ref=ref, kind="cache", directory=str(snapshot), note=f"in the cache {cache}")
        absent = f"not whole in the cache {cache} (it lacks {', '.join(lacks)})"
    mend = (
        f"Run `hf download {ref}` where there is internet (HF_HOME on the shared file system), or give --weights PATH."
    )
    if is_offline(environ):
        raise UsageError(Problem("weights", f"{ref} is {absent}, and HF_HUB_OFFLINE is set", mend))
    if not ask_hub:
        return Weights(ref=ref, kind="hub", note=f"{absent}; a submit asks the hub")
    name = ""
    try:
        for name in ("config.json", *(() if tokenizer else ("tokenizer.json",))):
            ask(f"{ref}/resolve/main/{name}", environ)
    except HubRefusalError as refusal:
        if refusal.code == 404 and name == "tokenizer.json":  # config.json was there
            fix = f"{mend} Training takes fast tokenizers: {_CONVERT}."
            raise UsageError(Problem("weights", f"{ref} on the hub has no {name}", fix)) from None
        raise UsageError(Problem("weights", f"{ref} {refusal}", mend)) from None
    except (OSError, ValueError):
        raise UsageError(
            Problem("weights", f"{ref} is {absent}, and the hub cannot be reached from here", mend)
        ) from None
    return Weights(ref=ref, kind="hub", note=f"{absent}: the preparation downloads it, so its node needs internet")
