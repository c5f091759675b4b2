"""Finds secrets in text without repeating them: by the name of a variable, or by the form of a provider's tokens.

The forms are those of GitHub's secret scanning
(https://docs.github.com/en/code-security/secret-scanning/introduction/supported-secret-scanning-patterns).
"""

from __future__ import annotations

import re

_NAME = re.compile(
    r"(?:^|_)(?:TOKEN|API_?KEY|SECRET|SECRET_KEY|SECRET_ACCESS_KEY|ACCESS_KEY|PASSWORD|PASSWD|PRIVATE_KEY)$",
    re.IGNORECASE,
)
# Words of a tokenizer, not credentials.
_TOKENIZER = re.compile(r"(?:^|_)(?:PAD|EOS|BOS|UNK|SEP|CLS|MASK|IMAGE|END|START|STOP|SPECIAL)_TOKEN$", re.IGNORECASE)
_FORMS = (
    ("a Hugging Face token", re.compile(r"\bhf_[A-Za-z0-9]{20,}\b")),
    ("a GitHub token", re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{40,})\b")),
    ("an AWS access key", re.compile(r"\bA(?:KIA|SIA)[0-9A-Z]{16}\b")),
    ("an OpenAI key", re.compile(r"\bsk-(?:proj-)?[A-Za-z0-9_-]{32,}")),
    ("a private key", re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----")),
)
_ASSIGNMENT = re.compile(r"\b([A-Za-z_][A-Za-z0-9_]{0,80})=(\"[^\"]{0,300}|'[^']{0,300}|[^\s;,&|'\"]{1,300})")
_WANDB_LOGIN = re.compile(r"\bwandb\s+login\s+(?:--\S+\s+)*[0-9a-f]{40}\b")
_PLACEHOLDER = re.compile(
    r"^(?:<.*|x{3,}|\*+|\.{3}|your.*|change.?me.*|replace.*|none|null|todo|dummy|false|true|-)$", re.I
)
MIN_SECRET = 8
"""Characters: what is shorter protects nothing, and is a word more often than a secret."""


def is_secret(name: str, value: str) -> bool:
    """Return whether a variable of that name holds its secret in clear: not a reference, a path or a placeholder."""
    value = value.strip().strip("\"'")
    if token_form(value):
        return True
    if not _NAME.search(name) or _TOKENIZER.search(name) or len(value) < MIN_SECRET:
        return False
    reference = value.startswith(("$", "`", "/", "~", "{{", "file:")) or "$(" in value
    return not reference and not _PLACEHOLDER.match(value)


def token_form(text: str) -> str | None:
    """Return what kind of credential stands in the text (``a GitHub token``), or None."""
    for kind, form in _FORMS:
        if form.search(text):
            return kind
    return "a W&B key" if _WANDB_LOGIN.search(text) else None


def secret_in_line(line: str) -> str | None:
    """Return what secret a line of a script assigns or passes, by name or kind, or None; never its value."""
    for name, value in _ASSIGNMENT.findall(line):
        if is_secret(name, value):
            return f"the value of {name}"
    return token_form(line)
