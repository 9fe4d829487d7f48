"""``sam-peft settings``: print every setting, and the file that was read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields

from harness.cli.command import CommandParser, command, verb
from harness.settings import HERE, Settings, load_settings, user_file
from harness.system.streams import say


def parser() -> CommandParser:
    epilog = f"Settings come from {HERE} of the working folder, else {user_file()}, and from variables SAM_PEFT_… (docs/start.md)."
    p = command("settings", __doc__, epilog=epilog)
    p.add_argument("--json", action="store_true", help="print JSON, one object per setting and line")
    return p


@verb
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    settings = load_settings()
    rows = list(_rows(settings))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(json.dumps({"setting": name, "value": value}) if arguments.json else f"{name:<{width}}  {value}")
    say(f"read: {settings.source or 'no file'}")
    return 0


def _rows(settings: Settings) -> Iterator[tuple[str, str]]:
    """Name and value; a row for each name of a table."""
    for name in (field.name for field in fields(Settings) if field.name != "source"):
        value = getattr(settings, name)
        if value and name in ("datasets", "checkpoints"):
            yield from ((f"{name}.{key}", str(path)) for key, path in value.items())
        else:
            yield name, ", ".join(map(str, value)) if value and name == "plugins" else str(value or "-")
