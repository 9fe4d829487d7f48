"""``sam-peft completion SHELL``: print what makes a shell complete the verbs and options of sam-peft.

bash: ``sam-peft completion bash > ~/.local/share/bash-completion/completions/sam-peft``. zsh: the same into a file
``_sam-peft`` of a folder in ``fpath``.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

from harness.cli.command import PROGRAM, CommandParser, command, verb
from harness.cli.verbs import VERBS, summaries

SHELLS = ("bash", "zsh")


def parser() -> CommandParser:
    p = command(
        "completion",
        __doc__,
        epilog=f"bash: {PROGRAM} completion bash > ~/.local/share/bash-completion/completions/{PROGRAM}",
    )
    p.add_argument("shell", choices=SHELLS)
    return p


@verb
def main(argv: list[str] | None = None) -> int:
    import shtab

    arguments = parser().parse_args(argv)
    print(shtab.complete(whole(), shell=arguments.shell))
    return 0


def whole() -> argparse.ArgumentParser:
    """One parser with every verb below it; paths are completed as files."""
    import shtab

    root = argparse.ArgumentParser(prog=PROGRAM)
    verbs = root.add_subparsers()
    told = summaries()
    for name, module in VERBS.items():
        own = import_module(module).parser()
        verbs.add_parser(name, help=told[name], description=told[name], parents=[own], add_help=False)
        for action in _actions(own):
            if action.type is Path and action.choices is None:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    return root


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    found = list(parser._actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += [inner for below in action.choices.values() for inner in _actions(below)]
    return found


if __name__ == "__main__":
    raise SystemExit(main())
