"""Every row of docs/performance.md that needs a GPU, one after the other, into one file.

``python -m benchmarks.gpu --json results/benchmarks/gpu-NAME.json`` starts each row as a process of its own. A row that
fails leaves its reason in the file, and the others are measured; ``--only ROW,ROW`` measures some again into the same
file. ``--rehearse`` goes through all of it with a tiny model on the CPU, but for what only a GPU has.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from benchmarks.saving import add_json, save
from harness.cli.command import verb
from harness.system.errors import UsageError, did_you_mean

HOURS = 1.0
"""That a row may take; a compiler that does not end is ended."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One command.

    Args:
        words: ``python -m`` and these, without where to and with what.
        prints: its result is what it prints, as JSON; else it has the option ``--json FILE``.
    """

    words: str
    prints: bool = False


def rows(*, size: str, backbones: Sequence[str], rounds: int) -> dict[str, Row]:
    """Name -> row.

    Args:
        size: the words of size and precision.
        backbones: each has its rows.
    """
    by_name: dict[str, Row] = {}
    for backbone in backbones:
        model = f"--backbone {backbone} {size} --batch 1"
        by_name |= {
            f"step-{backbone}": Row(words=f"benchmarks.step {model} --rounds {rounds} --methods lora,naslora --peers"),
            f"evaluation-{backbone}": Row(words=f"benchmarks.evaluation {model} --rounds {rounds} --images 16 --peers"),
            f"cost-{backbone}": Row(
                words=f"harness.__main__ cost {model} --rounds {rounds} --methods full,lora,naslora,decoder --shared --json",
                prints=True,
            ),
        }
    return by_name


FULL = {"size": "--image-size 1024 --precision bf16", "backbones": ("vit_b", "vit_h"), "rounds": 9}
REHEARSAL = {"size": "--image-size 64 --precision fp32", "backbones": ("tiny",), "rounds": 2}
REHEARSED = "--device cpu"
"""Further words of every row that takes a device."""


@verb
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rehearse", action="store_true", help="a tiny model on the CPU: does everything run?")
    parser.add_argument("--only", metavar="ROW,ROW", help="these alone, beside what FILE holds already")
    add_json(parser)
    options = parser.parse_args(argv)
    if not options.rehearse and not torch.cuda.is_available():
        raise UsageError("torch finds no CUDA device here; run this where there is one, or try it with --rehearse")
    if options.json is None:
        raise UsageError("give --json FILE: hours of measuring would be lost")
    planned = rows(**(REHEARSAL if options.rehearse else FULL))  # type: ignore[arg-type]
    chosen = options.only.split(",") if options.only else list(planned)
    for name in chosen:
        if name not in planned:
            raise UsageError(f"no row {name!r}{did_you_mean(name, planned)}; choose from {', '.join(planned)}")
    options.device = "cpu" if options.rehearse else "cuda"
    measured = _earlier(options.json) if options.only else {}
    for name in chosen:
        print(f"{name}: python -m {planned[name].words}", file=sys.stderr, flush=True)
        measured[name] = _measured(planned[name], rehearse=options.rehearse)
        save(options.json, options=options, measured={"rows": measured})
    table = [[name, f"{row['seconds']:.0f}", row.get("failed", "measured")] for name, row in measured.items()]
    print(tabulate(table, headers=["row", "took (s)", "result"], tablefmt="github", disable_numparse=True))
    return 1 if any("failed" in row for row in measured.values()) else 0


def _earlier(path: Path) -> dict[str, Any]:
    """The rows of the file, empty where there is none yet."""
    if not path.exists():
        return {}
    earlier: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return earlier


def _measured(row: Row, *, rehearse: bool) -> dict[str, Any]:
    """``measured``, what the row's command wrote, or ``failed``, the last line that it said; with its command and its time."""
    begun = time.monotonic()
    words = row.words.split()
    if rehearse:
        words += REHEARSED.split()
    result: dict[str, Any] = {"command": f"python -m {' '.join(words)}"}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "row.json"
        target = ["--results", folder] if row.prints else ["--json", str(file)]
        try:
            done = _run([*words, *target])
            text = done.stdout if row.prints else file.read_text(encoding="utf-8") if file.exists() else ""
            result["measured"] = json.loads(text)
        except subprocess.TimeoutExpired:
            result["failed"] = f"not done after {HOURS:g} hours"
        except json.JSONDecodeError:
            lines = done.stderr.strip().splitlines()
            result["failed"] = lines[-1] if lines else f"exit code {done.returncode}"
    return {**result, "seconds": round(time.monotonic() - begun, 1)}


def _run(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, timeout=3600 * HOURS)


if __name__ == "__main__":
    raise SystemExit(main())
