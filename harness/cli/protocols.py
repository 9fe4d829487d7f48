"""``sam-peft protocols``: show the rules of a card with where each value comes from, or compare two cards.

In place of a card's name the hash over a table works too; its rules are then those of the records made under it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from harness.archive.schema import Run
from harness.archive.store import RecordStore
from harness.cli.command import CommandParser, add_results, command, results_of, verb
from harness.protocols.keys import CUT_RULES, EXECUTION_ONLY, GONE, with_later, with_pixels
from harness.protocols.load import as_rules, card_names, card_path, load_protocol, protocol_hash, read_card
from harness.protocols.quirks import QUIRKS, quirks_page
from harness.system.errors import UsageError
from harness.system.streams import say_skipped
from harness.system.text import printable_line

SHORTEST = 4
"""Digits of a hash that are looked for."""
TABLES = ("methods", "benchmarks")
"""Of a card; what they say of a run is applied in its rules."""


def is_hash(text: str) -> bool:
    return re.fullmatch(rf"[0-9a-f]{{{SHORTEST},16}}", text) is not None


def runs_under(digest: str, root: Path) -> list[Run]:
    """The runs below ``root`` that were made under the one hash that begins with ``digest``, by benchmark. Raises UsageError: no
    record was made under it, or several hashes begin so."""
    records, skipped = RecordStore(root).summaries()
    say_skipped(skipped)
    runs = [record.run for record in records if record.run.protocol_hash.startswith(digest)]
    hashes = sorted({run.protocol_hash for run in runs})
    if not hashes:
        raise UsageError(
            f"no card and no record below {root} has the hash {digest!r}; give the folder of its records with --results DIR"
        )
    if len(hashes) > 1:
        raise UsageError(f"{digest!r} is the beginning of {', '.join(hashes)}; give more of it")
    return sorted(runs, key=lambda run: run.benchmark)


def filled(rules: Mapping[str, Any]) -> dict[str, Any]:
    """A record's rules with the fields that are younger than it, at the value that it was made with; without the tables that a card
    has for methods and benchmarks: a run's options are in its configuration, its benchmark's rules are applied."""
    every = with_later({"quirks": {}, **rules})
    gone = {name for name in every if name in GONE or (name in CUT_RULES and every[name] == CUT_RULES[name])}
    return {name: every[name] for name in sorted(every.keys() - gone) if name not in TABLES}


def parser() -> CommandParser:
    p = command("protocols", __doc__)
    commands = p.add_subparsers(dest="command", required=True)
    listed = commands.add_parser("list", help="the cards that come with the harness")
    show = commands.add_parser("show", help="every field of a card with its value and its mark: paper, code or ours")
    show.add_argument("card", help="name of a card, path of a .yaml file, or the hash over a table")
    show.add_argument("--diff", metavar="OTHER", help="show only the fields in which OTHER differs")
    add_results(show, help="where a hash's records lie (default: as set, else runs)")
    quirks = commands.add_parser("quirks", help="print docs/quirks.md, generated from the switches")
    for each in (listed, show, quirks):
        each.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return p


@verb
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.command == "quirks":
        data = [asdict(quirk) for quirk in QUIRKS]
        print(json.dumps(data, indent=1) + "\n" if arguments.json else quirks_page(), end="")
    elif arguments.command == "list":
        _list(as_json=arguments.json)
    elif arguments.diff:
        _compare(arguments.card, arguments.diff, root=results_of(arguments), as_json=arguments.json)
    else:
        _show(arguments.card, root=results_of(arguments), as_json=arguments.json)
    return 0


def _list(*, as_json: bool) -> None:
    cards = [
        {"card": name, "hash": protocol_hash(load_protocol(name)), "purpose": purpose(name)} for name in card_names()
    ]
    if as_json:
        print(json.dumps(cards, indent=1, ensure_ascii=False))
        return
    for card in cards:
        print(f"{card['card']:12} {card['hash']}  {card['purpose']}")


def purpose(card: str) -> str:
    """The first sentence over a card."""
    lines = card_path(card).read_text(encoding="utf-8").splitlines()
    sentences = " ".join(line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines))
    return re.split(r"(?<=\.)\s", sentences)[0]


def _show(card: str, *, root: Path, as_json: bool) -> None:
    shown = _read(card, root)
    rows = [(key, value, mark(key, shown.marks)) for key, value in shown.values.items()]
    if as_json:
        fields = [dict(zip(("field", "value", "mark"), row, strict=True)) for row in rows]
        print(json.dumps({"card": card, "hash": shown.digest, "fields": fields}, indent=1))
        return
    print(shown.title)
    for key, value, comment in rows:
        print(f"{key:36} {_text(value):32} {comment}".rstrip())


def _compare(card: str, other: str, *, root: Path, as_json: bool) -> None:
    values, other_values = _read(card, root).values, _read(other, root).values
    if is_hash(card) or is_hash(other):  # records have a card's tables applied
        values, other_values = (
            {k: v for k, v in card_values.items() if k.split(".")[0] not in TABLES}
            for card_values in (values, other_values)
        )
    values, other_values = with_pixels(values), with_pixels(other_values)
    untold = {key for key in values.keys() ^ other_values.keys() if key.partition(".")[0] in EXECUTION_ONLY}
    differing = [
        key for key in {**values, **other_values} if values.get(key) != other_values.get(key) and key not in untold
    ]
    if as_json:
        rows = [{"field": key, card: values.get(key), other: other_values.get(key)} for key in differing]
        print(json.dumps(rows, indent=1))
        return
    width = max((len(_text(values.get(key, "–"))) for key in differing), default=0)
    print(f"{'':36} {card:{width}} {other}")
    for key in differing:
        print(f"{key:36} {_text(values.get(key, '–')):{width}} {_text(other_values.get(key, '–'))}")


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """A card, or the rules behind a hash: field -> value, field -> mark."""

    values: dict[str, Any]
    marks: dict[str, str]
    digest: str
    title: str


def _read(name: str, root: Path) -> _Shown:
    digests = {card: protocol_hash(load_protocol(card)) for card in card_names()} if is_hash(name) else {}
    same = [card for card, digest in digests.items() if digest.startswith(name)]
    if same or not is_hash(name) or name in card_names():
        card = same[0] if same else name
        protocol = load_protocol(card)
        values, digest = opened(as_rules(protocol)), protocol_hash(protocol)
        return _Shown(values=values, marks=comments(card), digest=digest, title=f"# {card}  hash {digest}")
    runs = runs_under(name, root)
    card, digest = runs[0].protocol, runs[0].protocol_hash
    rules = {run.benchmark: opened(filled(run.rules)) for run in runs}
    first, *others = rules
    values = dict(rules[first])
    for benchmark in others:
        here = rules[benchmark]
        values |= {f"benchmarks.{benchmark}.{key}": here.get(key) for key in here if here.get(key) != values.get(key)}
    marks = comments(card) if card in card_names() else {}
    title = f"# {card} with overrides  hash {digest}  ({len(runs)} records, first {first})"
    return _Shown(values=values, marks=marks, digest=digest, title=printable_line(title))


def opened(rules: Mapping[str, Any]) -> dict[str, Any]:
    """Field path -> value, nested tables opened."""
    leaves: dict[str, Any] = {}

    def walk(values: Mapping[str, Any], path: str) -> None:
        for key, value in values.items():
            if isinstance(value, dict) and value:
                walk(value, f"{path}{key}.")
            else:
                leaves[path + key] = value

    walk(rules, "")
    leaves.pop("name", None)
    return leaves


def comments(card: str) -> dict[str, str]:
    """Field path -> the comment behind it in the card that sets it, which may be one that the card is based on."""
    files = read_card(card_path(card)).files()
    lines = [line for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    behind: dict[str, str] = {}
    parent = ""
    for line in lines:
        if field := re.match(r"(\s*)(\w+):(?:\s+([^#]*?))?\s*(?:#\s*(.*))?$", line):
            indent, key, value, comment = field.groups()
            name = f"{parent}.{key}" if indent else key
            parent = parent if indent else key
            if comment:
                behind[name] = comment
            elif value:  # the comment of a base is on its own value
                behind.pop(name, None)
    return behind


def mark(path: str, comments: dict[str, str]) -> str:
    """The comment of a field, or of the innermost table that holds it."""
    while path and path not in comments:
        path = path.rpartition(".")[0]
    return comments.get(path, "")


def _text(value: Any) -> str:
    return printable_line(str(list(value) if isinstance(value, tuple) else value))
