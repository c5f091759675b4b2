"""Says before anything is queued whether a data set of the hub can be had, here or (asked at a submit) on the hub."""

from __future__ import annotations

from collections.abc import Mapping

from fullft_cluster.config import Config
from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.hub import HubRefusalError, ask, is_offline
from fullft_cluster.hub_cache import has_data_set, hub_home
from fullft_cluster.row_sources import RowSource, sources_of


def look_for_data_sets(
    config: Config, environ: Mapping[str, str], *, must_exist: bool
) -> tuple[list[str], list[Problem]]:
    """Return what the user should know of a run's data sets on the hub, and what is wrong with them.

    ``must_exist``: as for weights, only then is the hub asked, and is one that cannot be had an error. The pods of
    Kubernetes may see more than this machine does.
    """
    notes: list[str] = []
    problems: list[Problem] = []
    if config.data.train is None and not config.data.sources:
        return notes, problems
    sources = (*sources_of(config.data), *sources_of(config.data, validation=True))
    for source in {source.path: source for source in reversed(sources) if source.kind == "hub"}.values():
        try:
            notes.append(find_data_set(source, environ, ask_hub=must_exist))
        except UsageError as error:
            if config.backend == "kubernetes":
                notes += [f"not seen from here, so the pods have to: {problem}" for problem in error.problems]
            elif must_exist:
                problems += error.problems
            else:
                notes += [f"a submit from here would be refused: {problem}" for problem in error.problems]
    return notes, problems


def find_data_set(source: RowSource, environ: Mapping[str, str], *, ask_hub: bool) -> str:
    """Return what the user should know of where a data set is. Raises UsageError when it cannot be had.

    Only with ``ask_hub`` is there a look beyond this machine's files.
    """
    ref = source.path
    if has_data_set(ref, environ):
        return f"data set {ref}: in the cache {hub_home(environ)}"
    absent = f"not in the cache {hub_home(environ)}"
    mend = f"Run `hf download --repo-type dataset {ref}` where there is internet (HF_HOME on the shared file system), "
    mend += "or give its files."
    folder, name = source.local.parent, source.local.name
    lacks = f"directory {folder} has no {name}" if folder.exists() else f"there is no directory {folder} here"
    mend = f"If it is meant as a path: {lacks}. {mend}"
    if is_offline(environ):
        raise UsageError(Problem(source.key, f"data set {ref} is {absent}, and HF_HUB_OFFLINE is set", mend))
    if not ask_hub:
        return f"data set {ref}: {absent}; a submit asks the hub"
    try:
        ask(f"datasets/{ref}/resolve/main/README.md", environ)
    except HubRefusalError as refusal:
        if not refusal.no_such_file:  # it may be without a README
            raise UsageError(Problem(source.key, f"data set {ref} {refusal}", mend)) from None
    except (OSError, ValueError):
        what = f"data set {ref} is {absent}, and the hub cannot be reached from here"
        raise UsageError(Problem(source.key, what, mend)) from None
    return f"data set {ref}: {absent}: the preparation downloads it, so its node needs internet"
