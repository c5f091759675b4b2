"""`submit --backend kubernetes`: everything is checked first, then all objects are made, or none."""

from __future__ import annotations

import contextlib
from collections.abc import Container
from typing import Any

import click

from fullft_cluster.backends.kubernetes import KubernetesBackend
from fullft_cluster.backends.kubernetes_objects import words_of
from fullft_cluster.backends.kubernetes_preflight import not_judged
from fullft_cluster.cli.options import print_json, resolved_from, say
from fullft_cluster.cli.planning import make_ready
from fullft_cluster.config_load import read_config_text
from fullft_cluster.kubernetes_api import Forbidden, connect


def submit_to_cluster(options: dict[str, Any], *, as_json: bool, dry_run: bool) -> None:
    """Submit to the API server, or have it judge what would be submitted."""
    api = connect(options.get("context"))  # before a long plan
    named = resolved_from(options)
    given = named.config.kubernetes.namespace if "kubernetes.namespace" in named.origins else None
    backend = KubernetesBackend(api, given, options.get("context"))
    taken: Container[str] = ()
    if named.config.name is None:
        with contextlib.suppress(Forbidden):  # told with everything else that is missing
            taken = backend.names()
    ready = make_ready(options, dry=False, taken=taken)
    config = read_config_text(ready.job.config_yaml)
    manifests = [ready.rendered.files[part] for part in ready.rendered.parts]
    objects, judged = backend.check(manifests, config, ready.job.plan.nodes, say)
    if dry_run:
        for note in not_judged(objects, judged):
            say(note)
        _tell(ready.job.name, [words_of(obj) for obj in judged], as_json=as_json)
        return
    submission = backend.submit(ready.job.name, objects, config, say)
    say(f"run {submission.name} in namespace {backend.namespace}; its directory on the volume: {submission.run_dir}")
    say(f"follow it: fullft-cluster status {submission.name} {backend.flags} --watch")
    if as_json:
        print_json(submission)
    else:
        click.echo(submission.name)


def _tell(name: str, judged: list[str], *, as_json: bool) -> None:
    if as_json:
        print_json({"name": name, "judged": judged})
    else:
        for words in judged:
            click.echo(f"{words} accepted (server dry run)")
    say("nothing was changed")
