"""What the command lines of all verbs have in common: names, help without markup, one line an error. Free of torch."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

import harness
from harness.code import code_version
from harness.errors import UsageError

PROGRAM = "sam-peft"
ROOT = Path(str(harness.__file__)).parents[1]
"""Of the copy that is running."""


def program(verb: str = "") -> str:
    """How the verb was called: ``sam-peft run``, ``python -m harness run`` or ``python -m harness.run``."""
    started = Path(sys.argv[0])
    if started.name == PROGRAM:
        return f"{PROGRAM} {verb}".rstrip()
    if not verb or (started.parent.name, started.name) == ("harness", "__main__.py"):
        return f"python -m harness {verb}".rstrip()
    return f"python -m harness.{verb}"


def plain(documentation: str | None) -> str:
    """The first paragraph of a docstring as a sentence for a terminal: without the command it begins with, without markup."""
    paragraph = " ".join((documentation or "").split("\n\n")[0].split())
    text = re.sub(r"^``[^`]+``: ", "", paragraph).replace("``", "").replace("`", "")
    return text[:1].upper() + text[1:]


def version() -> str:
    """Version, commit and place of the copy that is running."""
    told = code_version()
    commit = f", commit {told['commit'][:12]}{' with changes' if told['dirty'] else ''}" if told["commit"] else ""
    return f"{PROGRAM} {harness.__version__}{commit}, in {ROOT}"


def copy_in_use() -> str:
    """A line on which copy is running, empty inside of it."""
    here = Path.cwd()
    return "" if here.is_relative_to(ROOT) else version()


class CommandParser(argparse.ArgumentParser):
    """argparse whose errors are one line, with the nearest option where one is unknown."""

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            near = difflib.get_close_matches(unknown.split()[0].partition("=")[0], self._option_string_actions, n=1)
            message = f"unknown argument {unknown.split()[0]!r}{f' (did you mean {near[0]}?)' if near else ''}"
        raise UsageError(f"{message}; {self.prog} --help lists what there is")

    def _print_message(self, message: str, file: Any = None) -> None:
        """argparse would pass over a full disk in silence where output is not buffered."""
        (file or sys.stdout).write(message)


class _Version(argparse.Action):
    def __init__(self, option_strings: list[str], dest: str, **_: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help="print version, commit and place, and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(version())
        parser.exit()


class Once(argparse.Action):
    """The value of a list option; where it is given twice, argparse would take the last list in silence."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        before = getattr(namespace, self.dest)
        if before not in (self.default, values):
            option = self.option_strings[0]
            parser.error(f"{option} is given twice; give one list: {option} {before},{values}")
        setattr(namespace, self.dest, values)


def require_effect(arguments: argparse.Namespace, *options: str, without: str) -> None:
    """Refuse options that were given and change nothing.

    Args:
        options: long names without dashes.
        without: in which case, such as ``with --check``.

    Raises:
        UsageError: one of them was given.
    """
    for option in options:
        if getattr(arguments, option.replace("-", "_")) not in (None, False, [], ""):
            raise UsageError(f"--{option} has no effect {without}; leave it away")


def command(verb: str, documentation: str | None, *, epilog: str | None = None) -> CommandParser:
    """The parser of a verb, with what all of them have.

    Args:
        verb: its name in `harness.verbs`.
        documentation: of its module; the first paragraph says what it does.
        epilog: what stands below the options.
    """
    parser = CommandParser(prog=program(verb), description=plain(documentation), epilog=epilog)
    parser.add_argument("--version", action=_Version)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error that nobody foresaw")
    return parser
