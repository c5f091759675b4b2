"""What may stand in the environment of a job, whichever scheduler it goes to."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.quoting import check_text

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIAL", re.IGNORECASE)


def environment_problems(env: Mapping[str, str], where: str, advice: str) -> Iterator[Problem]:
    """Yield what is wrong with an environment: names that no shell takes, secrets, values that are not one line.

    ``advice``: what to do with a secret; ``{name}`` in it stands for the variable.
    """
    for name, value in env.items():
        place = f"{where}.{name}"
        if not _VARIABLE.fullmatch(name):
            yield Problem(place, "is not a name of an environment variable", "Use letters, digits and '_'.")
        elif _SECRET.search(name):
            what = "looks like a secret, and the script can be read by others"
            yield Problem(place, what, advice.replace("{name}", name))
        else:
            try:
                check_text(value, place)
            except UsageError as error:
                yield from error.problems
