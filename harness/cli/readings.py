"""``sam-peft readings``: report what many readings of a method say together, or show the screening design (--plan).

The readings run like any study: ``python -m harness.run --study readings``; ``sam-peft figures readings --study
readings`` draws their specification curve.
"""

from __future__ import annotations

import sys
from pathlib import Path

from harness.archive.archive import Archive
from harness.cli.command import CommandParser, command, require_effect, verb
from harness.comparison.claims import FILE, read_claims
from harness.report.formats import write
from harness.report.readings import reading_page
from harness.settings.read import add_results, results_of
from harness.studies import Study, load_study
from harness.studies.design import aliases
from harness.system.errors import UsageError
from harness.system.files import write_atomically
from harness.system.streams import say_skipped


@verb
def main(argv: list[str] | None = None) -> int:
    options = parser().parse_args(argv)
    options.results = results_of(options)
    study = load_study(options.study)
    if study.readings is None:
        raise UsageError(
            f"study {study.name} has no readings; name one that has (readings), or add them to a copy of it"
        )
    if options.plan:
        require_effect(options, "json", "protocol", without="with --plan, which reads no record")
        print(design_text(study), end="")
        return 0
    archive = Archive(options.results)
    if not archive.store.folder.is_dir():
        raise UsageError(
            f"{options.results} holds no records; run the readings first: python -m harness.run --study {options.study} …"
        )
    say_skipped(archive.problems)
    protocol = options.protocol or study.protocol
    page = reading_page(archive.records, study, archive, claims=read_claims(options.claims), protocol=protocol)
    text = write(page)
    path = options.results / "readings" / f"{study.name}.md"
    write_atomically(path, text)
    print(write(page, style="json") if options.json else text, end="")
    print(f"written: {path}", file=sys.stderr)
    return 0


def design_text(study: Study) -> str:
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


def parser() -> CommandParser:
    p = command("readings", __doc__)
    p.add_argument("--study", default="readings", metavar="NAME", help="a study with readings (default: readings)")
    add_results(p)
    p.add_argument("--protocol", metavar="CARD", help="whose records count (default: the study's)")
    p.add_argument("--claims", type=Path, default=FILE, help="claims as YAML (default: results/claims.yaml)")
    p.add_argument("--plan", action="store_true", help="show the design and what it cannot tell apart; read no record")
    p.add_argument("--json", action="store_true", help="print the page as JSON")
    return p


if __name__ == "__main__":
    raise SystemExit(main())
