"""``--json FILE``: what a benchmark measured, with where and with what code, for a claim that points at it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--json FILE``; a folder that is not there is refused before anything is measured."""
    parser.add_argument("--json", type=_file, metavar="FILE", help="write what was measured here")


def _file(text: str) -> Path:
    path = Path(text)
    if not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{path.parent} is no folder; create it first")
    return path


def save(path: Path | None, *, options: argparse.Namespace, measured: dict[str, Any]) -> None:
    """Write ``measured`` with the command's options and the environment; nothing without a path."""
    if path is None:
        return
    import torch

    from harness.experiment.environment import environment  # with torch: what measures other processes stays small

    device = torch.device(getattr(options, "device", "cpu"))
    given = {name: str(value) for name, value in vars(options).items() if value is not None and name != "json"}
    where = environment(device if device.type == "cuda" else torch.device("cpu"))
    path.write_text(json.dumps({"options": given, "environment": where, **measured}, indent=1) + "\n", encoding="utf-8")
