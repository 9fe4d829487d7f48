"""Shared by all verbs: names, options, help without markup, and errors as one line with exit code 2. Free of torch."""

from __future__ import annotations

import argparse
import difflib
import errno
import functools
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import harness
from harness.datasets.base import AWAY, DatasetError
from harness.methods.parts.placement import MethodError
from harness.settings import load_settings
from harness.system.errors import REASONS, UsageError, os_reason, out_of_memory
from harness.system.files import require_text, write_atomically
from harness.system.machine import code_version
from harness.system.streams import lost_output, open_streams, say

PROGRAM = "sam-peft"
ROOT = Path(str(harness.__file__)).parents[1]
"""The folder of the running copy."""


def plain(documentation: str | None) -> str:
    """The first paragraph of a docstring as a sentence for a terminal, without its leading command and without markup."""
    paragraph = " ".join((documentation or "").split("\n\n")[0].split())
    text = re.sub(r"^``[^`]+``: ", "", paragraph).replace("``", "").replace("`", "")
    return text[:1].upper() + text[1:]


def version() -> str:
    """Version, commit and folder of the running copy."""
    code = code_version()
    commit = f", commit {code['commit'][:12]}{' with changes' if code['dirty'] else ''}" if code["commit"] else ""
    return f"{PROGRAM} {harness.__version__}{commit}, in {ROOT}"


class CommandParser(argparse.ArgumentParser):
    """argparse with one-line errors that suggest what to type in place of an unknown option."""

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            words = unknown.split()
            instead = self._instead_of(*words)
            message = f"unknown argument {words[0]!r}{f' (did you mean {instead}?)' if instead else ''}"
        raise UsageError(f"{message}; {self.prog} --help lists all arguments")

    def _instead_of(self, word: str, *rest: str) -> str:
        """``--set`` for a field of a protocol, else the nearest option."""
        option, _, value = word.partition("=")
        if "--set" in self._option_string_actions:
            from harness.protocols.protocol import Protocol  # imports numpy, which other errors need not wait for

            field = option.lstrip("-").replace("-", "_")
            if field in Protocol.__dataclass_fields__:
                return f"--set {field}={value or next(iter(rest), 'VALUE')}"
        near = difflib.get_close_matches(option, self._option_string_actions, n=1)
        return near[0] if near else ""

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print a message; argparse would ignore a full disk if output is not buffered."""
        (file or sys.stdout).write(message)


class Once(argparse.Action):
    """The value of a list option, refused if given twice; argparse would silently take the last."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        before = getattr(namespace, self.dest)
        if before not in (self.default, values):
            parser.error(f"{self.option_strings[0]} is given twice, as {before} and as {values}; give it once")
        setattr(namespace, self.dest, values)


class _Words(argparse.Action):
    """Words joined by spaces."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        setattr(namespace, self.dest, " ".join(values))


def add_results(
    parser: argparse._ActionsContainer, help: str = "results folder (default: the setting, else runs)"
) -> None:
    """``--results DIR``; see `results_of`."""
    parser.add_argument("--results", type=Path, metavar="DIR", help=help)


def results_of(arguments: argparse.Namespace) -> Path:
    """The results folder: the command line's, else the setting's, else ``runs``. Raises UsageError: its path is not valid
    text."""
    folder = Path(arguments.results or load_settings().results)
    require_text(folder, what="--results")
    return folder


def add_plugins(parser: argparse._ActionsContainer, help: str = "a file that defines more methods") -> None:
    """``--plugin FILE.py``; see `plugins_of`."""
    parser.add_argument("--plugin", action="append", type=Path, default=[], metavar="FILE.py", help=help)


def plugins_of(arguments: argparse.Namespace) -> list[Path]:
    """The plug-in files of the command line and of the settings; those of the settings are printed before they are loaded. Raises
    UsageError: the command line names a file that does not exist."""
    for path in arguments.plugin:
        if not path.is_file():
            raise UsageError(f"--plugin {path}: no such file; give the path of the plug-in's .py file")
    settings = load_settings()
    if settings.plugins:
        say(f"plug-ins of {settings.source}: {', '.join(map(str, settings.plugins))}")
    return list(dict.fromkeys([*arguments.plugin, *settings.plugins]))


def load_own_plugins(arguments: argparse.Namespace) -> list[Path]:
    """Load the files of `plugins_of`, any of which a finished run may need; returns them."""
    from harness.registry import load_plugin  # looks for installed plug-ins

    files = plugins_of(arguments)
    for path in files:
        load_plugin(path)
    return files


def add_run(parser: argparse._ActionsContainer, *, option: str = "--run", help: str = "a finished run") -> None:
    """Add an option that takes a run by its key or by words (`harness.cli.find`)."""
    parser.add_argument(
        option,
        action=_Words,
        nargs="+",
        metavar="KEY",
        help=f"{help}: its key, its beginning, or words that fit only one: lora kvasir 0",
    )


def write_file(path: Path, content: str | bytes, *, what: str) -> None:
    """Write a verb's output, whole or not at all. Raises UsageError: the ``what`` cannot be written."""
    try:
        write_atomically(path, content)
    except OSError as error:
        raise UsageError(f"cannot write the {what} {path}: {os_reason(error)}") from error


def require_effect(arguments: argparse.Namespace, *options: str, without: str) -> None:
    """Refuse options, by their long names without dashes, that have no effect ``without`` (such as ``with --check``). Raises UsageError:
    one of them was given."""
    for option in options:
        if getattr(arguments, option.replace("-", "_")) not in (None, False, [], ""):
            raise UsageError(f"--{option} has no effect {without}; leave it out")


def command(verb: str, documentation: str | None, *, epilog: str | None = None) -> CommandParser:
    """The parser of a verb, with what all of them have; the first paragraph of its module's docstring is its description."""
    parser = CommandParser(prog=f"{PROGRAM} {verb}", description=plain(documentation), epilog=epilog)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an unexpected error")
    return parser


def subcommand(commands: Any, name: str, help: str) -> argparse.ArgumentParser:
    """The parser of one command of a verb, whose description is its line in the verb's help."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
    return parser


DEBUG = "--debug"
_FREE_SPACE = "; free space or choose another folder, then repeat the command"
_DENIED = "; let its owner give you access, or choose another"
_AGAIN = "; the disk or its server did not answer, so repeat the command"
_ADVICE = {
    **dict.fromkeys(AWAY, _AGAIN),
    errno.ENAMETOOLONG: "",
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.EFBIG: "; raise the limit",
    errno.ELOOP: "; make it a folder, or choose another",
}


def verb(main: Callable[[list[str] | None], int]) -> Callable[..., int]:
    """Decorate a verb's ``main``.

    A user's error prints ``error: …`` and returns 2. So does any other exception; with ``--debug`` it is raised. Ctrl-C returns 130.
    SIGTERM and SIGHUP do what Ctrl-C does and return 143 and 129. A closed pipe is quiet; output that cannot be written is an error.
    """

    @functools.wraps(main)
    def wrapped(argv: list[str] | None = None) -> int:
        words = sys.argv[1:] if argv is None else argv
        with _ended_as_by_ctrl_c() as received:
            try:
                open_streams()
                code = _run(main, [word for word in words if word != DEBUG])
            except (UsageError, MethodError, DatasetError) as error:
                code = _error(str(error))
            except KeyboardInterrupt as interrupt:
                say(f"interrupted: {interrupt}" if str(interrupt) else "interrupted")
                code = 128 + (received[-1] if received else signal.SIGINT)
            except BrokenPipeError:
                code = 0
            except Exception as error:
                if DEBUG in words:
                    raise
                code = _error(_last_resort(error))
            lost = lost_output()
        if lost is None or isinstance(lost, BrokenPipeError):
            return code
        return _error(f"standard output cannot be written: {os_reason(lost)}") if code == 0 else code

    return wrapped


def _run(main: Callable[[list[str] | None], int], words: list[str]) -> int:
    try:
        return main(words)
    except SystemExit as end:  # argparse: --help, or a mistake in the arguments
        if lost := lost_output():
            raise lost from None
        raise end


def _error(text: str) -> int:
    say(f"error: {text}")
    return 2


def _last_resort(error: Exception) -> str:
    """One line about an unexpected error."""
    if isinstance(error, OSError) and error.errno in {*REASONS, *_ADVICE}:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{os_reason(error)}{_ADVICE.get(error.errno, _FREE_SPACE)}"
    text = " ".join(str(error).split())
    if out_of_memory(error):
        return f"memory, or a limit on it (ulimit -v), is not enough{': ' if text else ''}{text[:200]}"
    text = f"{type(error).__name__}: {text[:200]}{'…' if len(text) > 200 else ''}"
    return f"{text}; this was not expected: {DEBUG} shows where"


@contextmanager
def _ended_as_by_ctrl_c() -> Iterator[list[int]]:
    """SIGTERM and SIGHUP do what Ctrl-C does; yields the list of the signals received.

    Ignored signals stay ignored (``nohup``), handlers stay, and a forked process ends by the signal itself.
    """
    received: list[int] = []
    process = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        received.append(number)
        handler = signal.getsignal(signal.SIGINT)
        if not callable(handler):  # a shell's background job has Ctrl-C ignored
            raise KeyboardInterrupt
        handler(number, frame)

    handled = []
    if threading.current_thread() is threading.main_thread():
        handled = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_DFL]
    for number in handled:
        signal.signal(number, end)
    try:
        yield received
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)
