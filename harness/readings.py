"""``python -m harness.readings``: what many readings of a method say together; ``--plan`` shows the screening design.

The readings run like any study: ``python -m harness.run --study readings``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from harness.cli import verb
from harness.errors import UsageError
from harness.files import write_atomically
from harness.records.store import RecordStore
from harness.reporting.claims import FILE, read
from harness.reporting.pages import images_below
from harness.reporting.readings import report
from harness.streams import say_skipped
from harness.studies import Study, load_study
from harness.studies.design import aliases


@verb
def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    study = load_study(options.study)
    if study.readings is None:
        raise UsageError(
            f"study {study.name} has no readings; name one that has (readings), or add them to a copy of it"
        )
    if options.plan:
        print(plan_text(study), end="")
        return 0
    store = RecordStore(options.results)
    if not store.folder.is_dir():
        raise UsageError(
            f"{options.results} holds no records; run the readings first: python -m harness.run --study {options.study} …"
        )
    records, problems = store.summaries()
    say_skipped(problems)
    protocol = options.protocol or study.protocol
    text = report(
        records, study, claims=read(options.claims), images_of=images_below(options.results), protocol=protocol
    )
    path = options.results / "tables" / f"{study.name}.readings.md"
    write_atomically(path, text)
    print(text, end="")
    print(f"written: {path}", file=sys.stderr)
    return 0


def plan_text(study: Study) -> str:
    """The fields, the readings and what the design cannot tell apart."""
    readings = study.readings
    assert readings is not None
    lines = [f"{study.title}: {len(readings.points)} readings of {readings.method}", ""]
    for field in readings.fields:
        values = [", ".join(f"{name}={value}" for name, value in level.items()) for level in field.levels]
        lines.append(
            f"{field.name}: {values[0]} (default) | {values[1]}" + "".join(f" | alone: {v}" for v in values[2:])
        )
    lines += ["", *(f"  {entry.label}" for entry in readings.entries()), ""]
    for name, shares in aliases(readings.fields).items():
        strongest = max(shares.values(), key=abs, default=0.0)
        lines.append(
            f"{name} carries up to {abs(strongest):.2f} of each of {len(shares)} interactions of two other fields"
        )
    lines += ["", f"run them: python -m harness.run --study {study.name} --data DIR --checkpoint FILE"]
    return "\n".join(lines) + "\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m harness.readings", description=__doc__)
    parser.add_argument("--study", default="readings", metavar="NAME", help="a study with readings (default: readings)")
    parser.add_argument(
        "--results", type=Path, default=Path("runs"), metavar="ROOT", help="results folder (default: runs)"
    )
    parser.add_argument("--protocol", metavar="CARD", help="whose records count (default: the study's)")
    parser.add_argument("--claims", type=Path, default=FILE, help="claims as YAML (default: results/claims.yaml)")
    parser.add_argument(
        "--plan", action="store_true", help="show the design and what it cannot tell apart; read no record"
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
