"""``sam-peft protocols``: show the rules of a protocol."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from harness.cli.command import CommandParser, command, subcommand, verb
from harness.protocols.load import as_rules, load_protocol, protocol_hash, protocol_names, protocol_path, read_protocol
from harness.system.text import printable_line


def parser() -> CommandParser:
    p = command("protocols", __doc__)
    commands = p.add_subparsers(dest="command", required=True)
    listed = subcommand(commands, "list", "list the protocols that come with the harness")
    show = subcommand(commands, "show", "show every field of a protocol, and its files, which give sources")
    show.add_argument("protocol", metavar="NAME", help="name of a protocol, or path of a .yaml file")
    for each in (listed, show):
        each.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return p


@verb
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.command == "list":
        data, lines = _listed()
    else:
        data, lines = _shown(arguments.protocol)
    print(json.dumps(data, indent=1, ensure_ascii=False) if arguments.json else "\n".join(lines))
    return 0


Answer = tuple[Any, list[str]]
"""What is printed as JSON, and as text."""


def _listed() -> Answer:
    listed = [
        {"protocol": name, "hash": protocol_hash(load_protocol(name)), "purpose": purpose(name)}
        for name in protocol_names()
    ]
    return listed, [f"{each['protocol']:12} {each['hash']}  {each['purpose']}" for each in listed]


def purpose(name: str) -> str:
    """The first sentence over a protocol."""
    lines = protocol_path(name).read_text(encoding="utf-8").splitlines()
    sentences = " ".join(line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines))
    return re.split(r"(?<=\.)\s", sentences)[0]


def _shown(name: str) -> Answer:
    protocol, (_, files) = load_protocol(name), read_protocol(protocol_path(name))
    digest = protocol_hash(protocol)
    rows = {key: value for key, value in opened(as_rules(protocol)).items() if key != "name"}
    head = f"# {name}  hash {digest}  {', '.join(map(str, files))}"
    shown = {key: list(value) if isinstance(value, tuple) else value for key, value in rows.items()}
    lines = [f"{key:36} {printable_line(str(value))}" for key, value in shown.items()]
    return {"protocol": name, "hash": digest, "fields": rows}, [head, *lines]


def opened(rules: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Field path -> value, nested tables opened; ``path``: of the table that ``rules`` is."""
    leaves: dict[str, Any] = {}
    for key, value in rules.items():
        inner = opened(value, f"{path}{key}.") if isinstance(value, dict) and value else {path + key: value}
        leaves |= inner
    return leaves
