"""The noun Rendered: the exact bytes of every artefact of a job. Pure: Jinja templates and a Job, nothing else."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from fullft_cluster import __version__
from fullft_cluster.deepspeed_json import deepspeed_json
from fullft_cluster.job import Job, summary
from fullft_cluster.plan import Frozen
from fullft_cluster.quoting import directive, log_pattern, shquote
from fullft_cluster.resources import share

if TYPE_CHECKING:
    import jinja2

SCRIPTS = {"slurm": "job.sbatch", "local": "job.sh"}
"""Name of the script in the run directory, by backend; its template is NAME.j2."""


class Rendered(Frozen, frozen=True):
    """Files of a run directory, by name, and which of them is submitted."""

    files: dict[str, str]
    script_name: str

    @property
    def script(self) -> str:
        """Return the text that `--dry-run` prints and that a submit hands over."""
        return self.files[self.script_name]


def environment() -> jinja2.Environment:
    """Return the Jinja environment: an undefined name is an error, and every value that a shell reads is quoted."""
    import jinja2  # late: a plan renders nothing

    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(share("templates")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    env.filters["shquote"] = shquote
    env.filters["directive"] = directive
    env.filters["log_pattern"] = log_pattern
    return env


def render(job: Job) -> Rendered:
    """Render a job. Raises UsageError for a value that cannot be quoted."""
    script_name = SCRIPTS[job.backend]
    script = (
        environment()
        .get_template(f"{script_name}.j2")
        .render(job=job, plan=job.plan, slurm=job.slurm, summary=summary(job.plan), version=__version__)
    )
    return Rendered(
        script_name=script_name,
        files={
            "config.yaml": job.config_yaml,
            "plan.json": job.plan.to_json().decode(),
            "deepspeed.json": json.dumps(deepspeed_json(job.plan), indent=2) + "\n",
            script_name: script,
        },
    )
