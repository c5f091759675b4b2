"""The noun Rendered: the exact bytes of every artefact of a job. Pure: Jinja templates and a Job, nothing else."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any

from fullft_cluster import __version__
from fullft_cluster.deepspeed_json import deepspeed_json
from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.job import Job, summary
from fullft_cluster.kubernetes_job import PORT, KubernetesJob
from fullft_cluster.plan import Frozen
from fullft_cluster.quoting import directive, log_pattern, shquote, yaml_value
from fullft_cluster.resources import share

if TYPE_CHECKING:
    import jinja2

SCRIPTS = {"slurm": "job.sbatch", "local": "job.sh", "kubernetes": "job.yaml"}
"""Name of the script in the run directory, by backend. Its template is NAME.j2, of a manifest KIND.yaml.j2."""

_CONFIG_MAP_BYTES = 2**20
"""The API server takes no larger ConfigMap (https://kubernetes.io/docs/concepts/configuration/configmap/)."""


class Rendered(Frozen, frozen=True):
    """Files of a run directory, by name, and which of them is submitted."""

    files: dict[str, str]
    script_name: str
    parts: tuple[str, ...] = ()
    """Of a job that is several manifests: their files, in the order in which they are applied."""

    @property
    def script(self) -> str:
        """Return the text that `--dry-run` prints and that a submit hands over."""
        return "---\n".join(self.files[name] for name in self.parts or (self.script_name,))


@cache
def environment(kind: str = "templates") -> jinja2.Environment:
    """Return the Jinja environment: an undefined name is an error, and every value has a filter that quotes it.

    ``kind``: ``templates`` or ``manifests``.
    """
    import jinja2  # late: a plan renders nothing

    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(share(kind)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    env.filters["shquote"] = shquote
    env.filters["directive"] = directive
    env.filters["log_pattern"] = log_pattern
    env.filters["yaml"] = yaml_value
    env.filters["component"] = _with_component
    return env


def _with_component(labels: dict[str, str], component: str) -> dict[str, str]:
    return {**labels, "app.kubernetes.io/component": component}


def render(job: Job) -> Rendered:
    """Render a job. Raises UsageError for a value that cannot be quoted."""
    script_name = SCRIPTS[job.backend]
    files = {
        "config.yaml": job.config_yaml,
        "plan.json": job.plan.to_json().decode(),
    }
    if job.plan.engine == "deepspeed":
        files["deepspeed.json"] = json.dumps(deepspeed_json(job.plan), indent=2) + "\n"
    if job.kubernetes is not None:
        manifests = _manifests(job, job.kubernetes, files)
        parts = tuple(manifests)
        kustomization = _rendered("kustomization", resources=parts)
        manifests["kustomization.yaml"] = kustomization
        return Rendered(script_name=script_name, files={**files, **manifests}, parts=parts)
    script = (
        environment()
        .get_template(f"{script_name}.j2")
        .render(job=job, plan=job.plan, slurm=job.slurm, summary=summary(job.plan), version=__version__)
    )
    return Rendered(script_name=script_name, files={**files, script_name: script})


def _manifests(job: Job, kubernetes: KubernetesJob, files: dict[str, str]) -> dict[str, str]:
    """Return the manifests by file, in the order in which they are applied."""
    shown = summary(job.plan)
    header = f"fullft-cluster {__version__}: {job.name}: {shown['model']} on {shown['gpus']} x {shown['gpu']}"
    values = {"k": kubernetes, "port": PORT, "header": header}
    names = ("storage",) if kubernetes.claim is not None else ()
    training = {
        "supervisor.yaml": _rendered("supervisor", **values),
        SCRIPTS["kubernetes"]: _rendered(kubernetes.kind, **values),
    }
    prepare = _rendered("prepare", **values)
    carried = {**files, "prepare.yaml": prepare, **training}  # `resume` applies the manifests again
    size = sum(len(text.encode()) for text in carried.values())
    if size > _CONFIG_MAP_BYTES:
        what = f"config, plan, DeepSpeed JSON and manifests have {size} bytes; a ConfigMap holds {_CONFIG_MAP_BYTES}"
        raise UsageError(Problem("kubernetes", what, "Shorten the texts of the configuration."))
    found = {f"{name}.yaml": _rendered(name, **values, files=carried) for name in (*names, "companions")}
    return {**found, "prepare.yaml": prepare, **training}


def _rendered(name: str, **values: Any) -> str:
    return environment("manifests").get_template(f"{name}.yaml.j2").render(**values)
