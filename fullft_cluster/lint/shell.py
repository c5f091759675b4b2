"""A shell script as a flat list of commands with their lines: enough for a linter, and it never fails.

Quotes, ``$(...)``, comments, continuation lines and the operators between commands are followed; here-documents are
skipped; functions, loops and conditions are flattened. What bash would refuse (an unclosed quote) becomes one long
word. One pass, linear in the text. Grammar: https://pubs.opengroup.org/onlinepubs/9799919799/utilities/V3_chap02.html
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass, field

_ASSIGNMENT = re.compile(r"^([A-Za-z_][A-Za-z0-9_]*)\+?=")
_KEYWORDS = frozenset(
    ["if", "then", "elif", "else", "while", "until", "do", "!", "{", "}", "(", ")", "time", "done", "fi"]
)
_WRAPPERS = frozenset(["exec", "nohup", "env", "command", "sudo", "stdbuf", "numactl", "builtin"])
_DECLARATIONS = frozenset(["export", "declare", "local", "readonly", "typeset"])
_REDIRECTION = re.compile(r"^[0-9]*(?:[<>]|&>)")
_HEREDOC = re.compile(r"<<(-?)[ \t]*(['\"\\]?)([A-Za-z0-9_.!@+-]+)")
_GROUP_END = ")"
_OPERATORS = ("&&", "||", ";;", "|&", ";", "&", "|", "\n")


@dataclass(frozen=True)
class Word:
    """A word of a command: as written, and the line (from 1) that it begins on."""

    raw: str
    line: int

    @property
    def text(self) -> str:
        """The word without its quotes; what is expanded in it stays as written."""
        return self.raw.replace('"', "").replace("'", "")


@dataclass
class Command:
    """A simple command and the operator after it (``&``, ``|``, ``&&``, ``||``, ``;``, a line's or a group's end)."""

    words: list[Word] = field(default_factory=list)
    before: str = "\n"
    after: str = "\n"
    in_loop: bool = False

    @property
    def line(self) -> int:
        """The line that it begins on."""
        return self.words[0].line

    @property
    def text(self) -> str:
        """The whole command as written, its words one space apart."""
        return " ".join(word.raw for word in self.words)

    @property
    def assignments(self) -> list[tuple[str, str, int]]:
        """Name, value as written, and line of each variable that it sets."""
        found = []
        declared = bool(self.words) and self.words[0].text in _DECLARATIONS
        for word in self.words:
            match = _ASSIGNMENT.match(word.raw)
            if match:
                found.append((match.group(1), word.raw[match.end() :], word.line))
            elif not declared:
                break
        return found

    @property
    def program(self) -> list[Word]:
        """Its words from the program on: without assignments, keywords and wrappers such as ``exec`` and ``env``."""
        for index, word in enumerate(self.words):
            if word.text not in _WRAPPERS and not _ASSIGNMENT.match(word.raw):
                return self.words[index:]
        return []

    @property
    def name(self) -> str:
        """The base name of its program, or ''."""
        program = self.program
        return posixpath.basename(program[0].text) if program else ""

    @property
    def replaces_shell(self) -> bool:
        """Whether ``exec`` puts it in the shell's place, so that signals reach it."""
        return bool(self.words) and self.words[0].text == "exec" and len(self.words) > 1

    def option(self, *names: str) -> str | None:
        """Return an option's value (``--name=x``, ``--name x``, ``-nx``, ``-n x``): '' for none, None if absent."""
        words = [word.text for word in self.program]
        for index, word in enumerate(words[1:], start=1):
            following = words[index + 1] if index + 1 < len(words) else ""
            for name in names:
                if word == name:
                    return "" if following.startswith("-") else following
                if name.startswith("--") and word.startswith(f"{name}="):
                    return word[len(name) + 1 :]
                if not name.startswith("--") and word.startswith(name) and not word.startswith("--"):
                    return word[len(name) :].removeprefix("=")
        return None


class _Lexer:
    """One pass over the text; `commands` collects."""

    def __init__(self, text: str, first_line: int) -> None:
        self.text = text
        self.at = 0
        self.line = first_line
        self.commands: list[Command] = []
        self.command = Command()
        self.heredocs: list[tuple[str, bool]] = []
        self.loops = 0
        self.target = False

    def run(self) -> list[Command]:
        """Return every command of the text."""
        while self.at < len(self.text):
            char = self.text[self.at]
            operator = next((op for op in _OPERATORS if self.text.startswith(op, self.at)), None)
            if operator and not self._redirection():
                self._end(operator)
            elif self.text.startswith("\\\n", self.at):
                self.at, self.line = self.at + 2, self.line + 1
            elif char in "()":
                self._parenthesis()
            elif char in " \t\r":
                self.at += 1
            elif char == "#":
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            elif self._heredoc():
                pass
            else:
                line = self.line
                self._add(Word(self._word(), line))
        self._end("")
        return self.commands

    def _redirection(self) -> bool:
        """Whether the ``&`` here belongs to ``2>&1`` or ``&>file``; then it is taken as part of a word."""
        before = self.text[self.at - 1 : self.at]
        return self.text[self.at] == "&" and (before in ("<", ">") or self.text.startswith("&>", self.at))

    def _end(self, operator: str) -> None:
        """Close the command at an operator; at a line's end, skip the here-documents that were announced on it."""
        if self.command.words:
            self.command.after = operator
            self.commands.append(self.command)
            self.command = Command(before=operator)
        elif operator in ("&", "|", "|&") and self.commands and self.commands[-1].after == _GROUP_END:
            self.commands[-1].after = operator  # what is done with a group or a loop is done with its last command
        elif operator != "\n":
            self.command.before = operator
        self.at += len(operator)
        if operator == "\n":
            self.line += 1
            for word, indented in self.heredocs:
                self._skip_heredoc(word, indented)
            self.heredocs.clear()

    def _parenthesis(self) -> None:
        """Pass one: ``f()`` names a function, ``(`` opens and ``)`` closes a group of commands."""
        if self.text.startswith("()", self.at) and len(self.command.words) == 1:
            self.command.words.clear()
        elif self.text[self.at] == ")":
            self._end(_GROUP_END)
            return
        self.at += 1

    def _redirects_group(self, word: Word) -> bool:
        """Whether a word redirects the group of commands that has just ended: ``2>&1``, ``< file``."""
        after_group = not self.command.words and bool(self.commands) and self.commands[-1].after == _GROUP_END
        is_target, self.target = self.target and after_group, False
        if after_group and _REDIRECTION.match(word.raw):
            self.target = word.raw[-1] in "<>"
            return True
        return is_target

    def _add(self, word: Word) -> None:
        """Put a word at the end of the command; a keyword in front of it only counts loops."""
        if self._redirects_group(word):
            return
        if not self.command.words and word.raw in _KEYWORDS:
            self.loops += word.raw in ("while", "until")
            self.loops = max(0, self.loops - (word.raw == "done"))
            if word.raw in ("}", "done", "fi") and self.commands and self.commands[-1].after in (";", "\n"):
                self.commands[-1].after = _GROUP_END
            return
        if word.raw == "{" and self.command.words and self.command.words[0].raw == "function":
            self.command.words.clear()
            return
        if not self.command.words:
            self.command.in_loop = self.loops > 0
            self.loops += word.raw in ("for", "select")
        self.command.words.append(word)

    def _heredoc(self) -> bool:
        if not self.text.startswith("<<", self.at) or self.text.startswith("<<<", self.at):
            return False
        match = _HEREDOC.match(self.text, self.at)
        if not match:
            return False
        self.heredocs.append((match.group(3), match.group(1) == "-"))
        self.at = match.end() + (match.group(2) in ("'", '"'))
        return True

    def _skip_heredoc(self, word: str, indented: bool) -> None:
        while self.at < len(self.text):
            end = self.text.find("\n", self.at)
            end = len(self.text) if end < 0 else end
            line = self.text[self.at : end]
            self.at, self.line = min(end + 1, len(self.text)), self.line + 1
            if (line.lstrip("\t") if indented else line).rstrip("\r") == word:
                return

    def _word(self) -> str:
        """Read one word; a stack holds what is open around the place: ``'``, ``"``, a backquote, or ``(`` of ``$(``."""
        start, stack = self.at, [""]
        while self.at < len(self.text):
            char, top = self.text[self.at], stack[-1]
            array = char == "(" and self.text[self.at - 1] == "=" and self.at > start
            if not top and not array and (char in " \t\r\n;|()" or (char == "&" and not self._redirection())):
                break
            if char == "\\" and top != "'":
                self.line += self.text.startswith("\n", self.at + 1)
                self.at += 2
                continue
            self.line += char == "\n"
            self.at += 1
            _nest(stack, char, self.text[self.at : self.at + 1])
            if char == "$" and self.text.startswith("(", self.at) and top != "'":
                self.at += 1
        self.at = max(min(self.at, len(self.text)), start + 1)
        return self.text[start : self.at]


def _nest(stack: list[str], char: str, following: str) -> None:
    """Open or close a quote or a parenthesis."""
    top = stack[-1]
    if top == "'":
        if char == "'":
            stack.pop()
    elif char == "$" and following == "(":
        stack.append("(")
    elif char in '"`' and top == char:
        stack.pop()
    elif char in '"`' or (char == "'" and top != '"'):
        stack.append(char)
    elif char == "(" and top in ("", "("):  # outside of everything it opens an array: x=(a b)
        stack.append("(")
    elif char == ")" and top == "(":
        stack.pop()


def read_commands(text: str, first_line: int = 1) -> list[Command]:
    """Return the commands of a script in order; ``first_line`` is the number of its first line in the file."""
    return _Lexer(text, first_line).run()
