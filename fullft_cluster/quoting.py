"""What may become a name or a path in a script, and its quoting there. Hostile text is refused or quoted, never run."""

from __future__ import annotations

import json
import re
import shlex
import unicodedata

from fullft_cluster.errors import Problem, UsageError

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_NOT_IN_YAML = re.compile(r"[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
_PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./-]+")


def check_name(name: str, where: str = "--name") -> str:
    """Return a run's name if it is one. Raises UsageError.

    A name becomes a directory, a job name and part of file names, so it is kept to what all of them take unquoted.
    """
    if not _NAME.fullmatch(name):
        suggestion = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:63].strip("-._") or "my-run"
        raise UsageError(
            Problem(
                where,
                f"{name!r} is not a run name (letters, digits, '.', '_' and '-', at most 63, not first or last a sign)",
                f"Write for example {suggestion!r}.",
            )
        )
    return name


def check_text(text: str, where: str) -> str:
    """Return a value that may stand in a script. Raises UsageError for control characters (newlines included)."""
    bad = sorted({repr(char) for char in text if unicodedata.category(char) in ("Cc", "Zl", "Zp", "Cs")})
    if bad:
        raise UsageError(
            Problem(where, f"{text!r} holds {', '.join(bad)}", "Leave out line breaks and control characters.")
        )
    return text


def shquote(value: object) -> str:
    """Quote one value for a shell: the Jinja filter of all that a shell reads. Raises UsageError as `check_text`."""
    return shlex.quote(check_text(str(value), "script"))


def directive(value: object) -> str:
    """Quote one value for an ``#SBATCH --option=value`` line.

    sbatch splits such a line itself, without a shell: it knows double quotes and backslashes in them, and expands
    nothing (https://slurm.schedmd.com/sbatch.html). Raises UsageError as `check_text`.
    """
    text = check_text(str(value), "script")
    if _PLAIN.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def log_pattern(value: object) -> str:
    """Return a path for sbatch's file name pattern, in which ``%`` starts a replacement symbol."""
    return str(value).replace("%", "%%")


def yaml_value(value: object) -> str:
    """Write one value for a manifest: the Jinja filter of all that YAML reads. JSON is YAML's flow style.

    Text stays readable (no surrogate pairs, which YAML does not join), but what YAML does not take unescaped, or takes
    for a line break, is escaped (https://yaml.org/spec/1.2.2/#51-character-set). Raises TypeError for what is no JSON,
    an undefined name of a template among it, and UsageError for text that is not UTF-8.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(Problem("manifest", f"{text[:80]!r} is not text in UTF-8", "Rename it.")) from None
    return _NOT_IN_YAML.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
