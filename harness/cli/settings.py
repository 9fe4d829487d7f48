"""``sam-peft settings``: print every setting with its value and where it comes from, write a commented file (--init), or
complete the verbs and options of sam-peft in a shell (--completion)."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Literal

from harness.cli.command import PROGRAM, CommandParser, command, require_effect, verb
from harness.cli.verbs import VERBS, summaries
from harness.settings import HERE, KEYS, Key, Settings, is_profile_file, load_settings, named_table, user_file
from harness.system.errors import UsageError, os_reason
from harness.system.streams import say

HEAD = """\
# Settings of the SAM PEFT harness. Uncomment what you need; `sam-peft settings` shows what holds.
# harness.toml counts in the folder it lies in, ~/.config/sam-peft-harness/settings.toml everywhere. Environment
# variables (SAM_PEFT_DATA, ...) beat both, and the command line beats all. Paths are relative to this file.
"""


def parser() -> CommandParser:
    p = command(
        "settings",
        __doc__,
        epilog=f"Read, the later above the earlier: {user_file()}, {HERE} of the working folder, variables SAM_PEFT_…."
        f" Completion in bash: {PROGRAM} settings --completion bash > ~/.local/share/bash-completion/completions/{PROGRAM};"
        f" in zsh: the same into a file _{PROGRAM} of a folder in fpath.",
    )
    p.add_argument("--init", action="store_true", help=f"write a commented {HERE} into this folder, or to --out")
    p.add_argument(
        "--completion", choices=("bash", "zsh"), help="print what makes this shell complete verbs and options"
    )
    p.add_argument("--json", action="store_true", help="print JSON, one object a setting and line")
    p.add_argument("--out", type=Path, metavar="FILE", help="with --init: the file to write, which must not exist")
    return p


@verb
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.completion:
        require_effect(arguments, "init", "json", "out", without="with --completion, which prints a script")
        import shtab

        print(shtab.complete(whole_parser(), shell=arguments.completion))
        return 0
    if arguments.init:
        require_effect(arguments, "json", without="with --init, which writes a file")
        return _write(arguments.out or HERE)
    if arguments.out:
        raise UsageError("--out is for --init, which writes a file")
    settings = load_settings()
    rows = list(_rows(settings))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, value, origin in rows:
        if arguments.json:
            print(json.dumps({"setting": name, "value": value, "from": origin}))
        else:
            print(f"{name:<{widths[0]}}  {value:<{widths[1]}}  {origin}".rstrip())
    refused = list(_refused(settings))
    for line in refused:
        say(f"error: {line}")
    return 2 if refused else 0


def _refused(settings: Settings) -> Iterator[str]:
    """What `run` would refuse of the values, without looking for the files that they name."""
    from harness.dispatch.place import place
    from harness.models.catalog import resolve_backbone
    from harness.planning.asked import parse_seeds
    from harness.protocols.load import load_protocol
    from harness.registry import dataset_name

    checks: dict[str, Callable[[], object]] = {
        "protocol": lambda: load_protocol(settings.protocol),
        "cluster": lambda: place(cluster=settings.cluster),
        "seeds": lambda: parse_seeds(settings.seeds, name="seeds"),
    }
    for name, check in checks.items():
        if getattr(settings, name):
            try:
                check()
            except UsageError as error:
                yield f"{settings.origins[name].name}: {error}"
    tables: dict[Literal["datasets", "checkpoints"], Callable[[str], str]]
    tables = {"datasets": dataset_name, "checkpoints": resolve_backbone}
    for table, resolve in tables.items():
        try:
            named_table(settings, table, resolve)
        except UsageError as error:
            yield str(error)


def _rows(settings: Settings) -> list[tuple[str, str, str]]:
    """Name, value, where it comes from; a row for each name of a table."""
    rows = []
    for key in KEYS:
        value = getattr(settings, key.name)
        if key.kind == "table":
            named = [(f"{key.name}.{name}", str(path)) for name, path in value.items()] or [(key.name, "-")]
        elif key.kind == "paths":
            named = [(key.name, ", ".join(map(str, value)) or "-")]
        else:
            named = [(key.name, str(value or "-"))]
        rows += [(name, text, _origin(settings, name)) for name, text in named]
    return rows


def _origin(settings: Settings, name: str) -> str:
    origin = settings.origins.get(name)
    if origin is None:
        return "default"
    code = name == "plugins" or (name == "cluster" and is_profile_file(settings.cluster))
    return f"{origin.name} (needs --trust-settings: {origin.foreign})" if code and origin.foreign else origin.name


def template() -> str:
    """A file in which everything is explained and nothing is set."""
    plain = [key for key in KEYS if key.kind != "table"]
    tables = [key for key in KEYS if key.kind == "table"]
    blocks = [_commented(key, key.example) for key in plain]
    blocks += [_commented(key, f"[{key.name}]\n# {key.example}") for key in tables]
    return "\n".join([HEAD, *blocks])


def _commented(key: Key, example: str) -> str:
    return f"# {key.name}: {key.help}; {key.variable} and {key.option} beat it\n# {example}\n"


def _write(path: Path) -> int:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(template())
    except FileExistsError as error:
        raise UsageError(f"{path} exists; edit it, or write another with --out FILE") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {os_reason(error)}") from error
    print(f"written: {path}; everything in it is a comment until you uncomment it")
    return 0


def whole_parser() -> argparse.ArgumentParser:
    """One parser with every verb below it; paths are completed as files."""
    import shtab

    root = argparse.ArgumentParser(prog=PROGRAM)
    verbs = root.add_subparsers()
    by_verb = summaries()
    for name, module in VERBS.items():
        verb_parser = import_module(module).parser()
        verbs.add_parser(name, help=by_verb[name], description=by_verb[name], parents=[verb_parser], add_help=False)
        for action in _actions(verb_parser):
            if action.type is Path and action.choices is None:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    return root


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """A parser's options and words, and those of the commands below it."""
    actions = list(parser._actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            actions += [inner for below in action.choices.values() for inner in _actions(below)]
    return actions
