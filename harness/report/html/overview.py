"""What was compared and under which rules, a row a set of rules; and the papers' claims, a row a claim."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

from harness.comparison import names
from harness.comparison.grid import Grid, quoted
from harness.comparison.provenance import Folder
from harness.judging.judging import Finding, counted, details
from harness.report.headings import Heading, lines_above
from harness.report.page import Block, texts

COLUMNS = ("rules", "differences to the card", "benchmarks", "methods", "seeds", "runs", "on", "finished")


def compared_block(headed: Sequence[tuple[Grid, Heading]]) -> Block:
    """Rules, what they were run on, and where."""
    rows = []
    for grid, heading in headed:
        codes = Counter(str(record.code) for record in grid.records)
        benchmarks = dict.fromkeys(names.benchmark_title(column.benchmark) for column in grid.columns)
        words = (
            heading.title,
            "card not known" if heading.overrides is None else heading.overrides or "none",
            ", ".join(benchmarks),
            ", ".join(dict.fromkeys(quoted(row.label) for row in grid.rows)),
            ", ".join(map(str, grid.seeds)),
            ", ".join(f"{count} {code}" for code, count in sorted(codes.items())),
            ", ".join(sorted({record.environment.get("device", "") for record in grid.records} - {""})) or "–",
            _days([record.finished[:10] for record in grid.records if record.finished]),
        )
        rows.append(texts(words, behind=partial(_rules, grid=grid, heading=heading)))
    return Block(heading="What was compared", columns=COLUMNS if rows else (), rows=rows)


def _rules(folder: Folder, grid: Grid, heading: Heading) -> list[str]:
    return [f"  {line}" for line in lines_above(grid, heading)]


def _days(days: Sequence[str]) -> str:
    return " to ".join(dict.fromkeys((min(days), max(days)))) if days else "–"


def claims_block(findings: Sequence[Finding]) -> Block:
    """The sentence, the verdict, and how many readings have data; every reading stands behind its cells."""
    rows = []
    for finding in findings:
        claim = finding.claim
        readings = (*finding.readings, *finding.averages)
        measured = [one for one in readings if one.estimate is not None]
        words = (
            claim.name, str(finding.verdict), f"{claim.text} [{claim.mark}: {claim.source}]", claim.expected,
            f"{len(measured)} of {len(readings)}",
        )  # fmt: skip
        rows.append(texts(words, behind=partial(_readings, finding=finding)))
    columns = ("claim", "verdict", "sentence", "holds for", "readings with data") if rows else ()
    return Block(heading="Claims of the papers", columns=columns, rows=rows, below=[counted(findings)] if rows else ())


def _readings(folder: Folder, finding: Finding) -> list[str]:
    return details(finding)
