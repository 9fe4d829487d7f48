"""``python -m harness.protocols show CARD [--diff OTHER]``: the rules of a card, field by field, with where each value comes from."""

from __future__ import annotations

import argparse
import re
from typing import Any

from harness.cli import verb
from harness.protocols.inheritance import read_card
from harness.protocols.load import as_rules, card_names, card_path, load_protocol, protocol_hash
from harness.protocols.quirks import quirks_page


@verb
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m harness.protocols", description="Show and compare protocol cards.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the cards that come with the harness")
    show = commands.add_parser("show", help="every field of a card with its value and its mark: paper, code or ours")
    show.add_argument("card", help="name of a card or path of a .yaml file")
    show.add_argument("--diff", metavar="OTHER", help="show only the fields in which OTHER differs")
    commands.add_parser("quirks", help="print docs/quirks.md, generated from the switches")
    arguments = parser.parse_args(argv)
    if arguments.command == "list":
        for name in card_names():
            print(f"{name:12} {protocol_hash(load_protocol(name))}")
        return 0
    if arguments.command == "quirks":
        print(quirks_page(), end="")
        return 0
    values, marks = flat(arguments.card), comments(arguments.card)
    if not arguments.diff:
        print(f"# {arguments.card}  hash {protocol_hash(load_protocol(arguments.card))}")
        for key, value in values.items():
            print(f"{key:36} {_text(value):32} {mark(key, marks)}".rstrip())
        return 0
    other = flat(arguments.diff)
    differing = [key for key in {**values, **other} if values.get(key) != other.get(key)]
    width = max((len(_text(values.get(key, "–"))) for key in differing), default=0)
    print(f"{'':36} {arguments.card:{width}} {arguments.diff}")
    for key in differing:
        print(f"{key:36} {_text(values.get(key, '–')):{width}} {_text(other.get(key, '–'))}")
    return 0


def flat(card: str) -> dict[str, Any]:
    """Field path -> value, nested tables opened."""
    found: dict[str, Any] = {}

    def walk(values: dict[str, Any], path: str) -> None:
        for key, value in values.items():
            if isinstance(value, dict) and value:
                walk(value, f"{path}{key}.")
            else:
                found[path + key] = value

    walk(as_rules(load_protocol(card)), "")
    del found["name"]
    return found


def comments(card: str) -> dict[str, str]:
    """Field path -> the comment behind it in the card, or in the card it is based on."""
    files = read_card(card_path(card)).files()
    lines = [line for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    found: dict[str, str] = {}
    parent = ""
    for line in lines:
        if field := re.match(r"(\s*)(\w+):(?:\s+([^#]*?))?\s*(?:#\s*(.*))?$", line):
            indent, key, _, comment = field.groups()
            name = f"{parent}.{key}" if indent else key
            parent = parent if indent else key
            if comment:
                found[name] = comment
    return found


def mark(path: str, comments: dict[str, str]) -> str:
    """The comment of a field, or of the innermost table that holds it."""
    while path and path not in comments:
        path = path.rpartition(".")[0]
    return comments.get(path, "")


def _text(value: Any) -> str:
    return str(list(value) if isinstance(value, tuple) else value)


if __name__ == "__main__":
    raise SystemExit(main())
