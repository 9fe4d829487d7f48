"""``sam-peft settings``: print every setting with the file that was read, or write a commented one (--init)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Literal

from harness.cli.command import CommandParser, command, require_effect, verb
from harness.settings import HERE, Settings, load_settings, named_table, user_file
from harness.system.errors import UsageError, os_reason
from harness.system.streams import say

TEMPLATE = """\
# Settings of sam-peft: uncomment what you need; `sam-peft settings` prints what holds.
# A harness.toml counts in its folder, else ~/.config/sam-peft-harness/settings.toml does. The variables SAM_PEFT_PROTOCOL,
# _DATA, _RESULTS, _CLUSTER, _SEEDS, _CACHE and _CACHE_GIB beat the file, and the command line beats all. Paths are relative to this file.

# protocol = "nas-lora"         # the card of rules (default: nas-lora where data is set, demo where nothing is)
# data = "/data/segmentation"   # the folder that holds the benchmarks' folders
# results = "runs"              # where records, tables and checkpoints go
# cluster = "gpu"               # the SLURM profile that runs are submitted with (default: none, they run here)
# seeds = 3                     # a number of seeds, or a list of them
# cache = "$TMPDIR/sam-peft"    # decoded images and embeddings, on a fast disk of the node (default: in the results)
# cache_gib = 64                # at most so many GiB of them; 0 keeps none
# plugins = ["my_method.py"]    # files that define more methods or benchmarks; they are code

# [datasets]                    # benchmarks that are elsewhere, and data of your own by any name
# kvasir = "/data/Kvasir-SEG"

# [checkpoints]                 # pretrained weights, one a backbone ("none": random; "published": downloaded)
# vit_h = "/data/sam_vit_h_4b8939.pth"
"""


def parser() -> CommandParser:
    p = command("settings", __doc__, epilog=f"Read: {HERE} of the working folder, else {user_file()}; then SAM_PEFT_….")
    p.add_argument("--init", action="store_true", help=f"write a commented {HERE} into this folder")
    p.add_argument("--json", action="store_true", help="print JSON, one object a setting and line")
    return p


@verb
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.init:
        require_effect(arguments, "json", without="with --init, which writes a file")
        return _write()
    settings = load_settings()
    rows = list(_rows(settings))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(json.dumps({"setting": name, "value": value}) if arguments.json else f"{name:<{width}}  {value}")
    say(f"read: {settings.source or 'no file'}")
    refused = list(_refused(settings))
    for line in refused:
        say(f"error: {line}")
    return 2 if refused else 0


def _rows(settings: Settings) -> Iterator[tuple[str, str]]:
    """Name and value; a row for each name of a table."""
    for name in (field.name for field in fields(Settings) if field.name not in ("source", "foreign")):
        value = getattr(settings, name)
        if value and name in ("datasets", "checkpoints"):
            yield from ((f"{name}.{key}", str(path)) for key, path in value.items())
        else:
            yield name, ", ".join(map(str, value)) if value and name == "plugins" else str(value or "-")


def _refused(settings: Settings) -> Iterator[str]:
    """What `run` would refuse of the values, without looking for the files that they name."""
    from harness.dispatch.target import target
    from harness.models.catalog import resolve_backbone
    from harness.planning.understand import parse_seeds
    from harness.protocols.load import load_protocol
    from harness.registry import dataset_name

    checks: dict[str, Callable[[], object]] = {
        "protocol": lambda: load_protocol(settings.protocol),
        "cluster": lambda: target(cluster=settings.cluster),
        "seeds": lambda: parse_seeds(settings.seeds, name="seeds"),
    }
    tables: dict[Literal["datasets", "checkpoints"], Callable[[str], str]]
    tables = {"datasets": dataset_name, "checkpoints": resolve_backbone}
    checks = {name: check for name, check in checks.items() if getattr(settings, name)}
    for check in (*checks.values(), *(lambda t=t, r=r: named_table(settings, t, r) for t, r in tables.items())):
        try:
            check()
        except UsageError as error:
            yield str(error)


def _write() -> int:
    try:
        with HERE.open("x", encoding="utf-8") as file:
            file.write(TEMPLATE)
    except FileExistsError as error:
        raise UsageError(f"{HERE} exists; edit it") from error
    except OSError as error:
        raise UsageError(f"{HERE} cannot be written: {os_reason(error)}") from error
    print(f"written: {HERE}; everything in it is a comment until you uncomment it")
    return 0
