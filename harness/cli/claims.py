"""``sam-peft claims``: judge the papers' claims from records, with the seeds that would settle each."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.archive.archive import Archive
from harness.archive.measured import CostStore
from harness.cli.command import CommandParser, add_results, command, results_of, verb
from harness.comparison.claims import FILE, read_claims
from harness.comparison.judging import Finding, findings_text, judge_claims, require_protocol
from harness.comparison.papers import Papers
from harness.planning.rows import trained_parameters
from harness.system.errors import UsageError, did_you_mean
from harness.system.streams import say_skipped, show_text


@verb
def main(argv: list[str] | None = None) -> int:
    options = parser().parse_args(argv)
    options.results = results_of(options)
    claims = read_claims(options.file)
    known = [claim.name for claim in claims]
    for name in options.names:
        if name not in known:
            raise UsageError(f"unknown claim {name!r}{did_you_mean(name, known)}")
    archive, costs = Archive(options.results), CostStore(options.results)
    if not archive.store.folder.is_dir() and not costs.folder.is_dir():
        raise UsageError(
            f"{options.results} holds neither records nor costs; run something first (python -m harness.run …), or give"
            " --results DIR"
        )
    say_skipped({**archive.problems, **costs.problems()})
    require_protocol(options.protocol, archive.records)
    chosen = [claim for claim in claims if not options.names or claim.name in options.names]
    findings = judge_claims(
        chosen, archive, protocol=options.protocol, papers=Papers.read(), closed_form=trained_parameters
    )
    if options.json:
        print("".join(json.dumps(finding_as_data(finding)) + "\n" for finding in findings), end="")
    else:
        show_text(findings_text(findings))
    others = sorted({record.run.protocol for record in archive.records} - {options.protocol})
    if others:
        print(f"records of other protocols do not count here: {', '.join(others)} (--protocol)", file=sys.stderr)
    return 0


def parser() -> CommandParser:
    p = command("claims", __doc__)
    p.add_argument("names", nargs="*", metavar="CLAIM", help="only these claims")
    add_results(p)
    p.add_argument("--protocol", default="nas-lora", metavar="CARD", help="whose scores count (default: nas-lora)")
    p.add_argument("--file", type=Path, default=FILE, help="claims as YAML (default: results/claims.yaml)")
    p.add_argument("--json", action="store_true", help="print JSON, one object a claim and line")
    return p


def finding_as_data(finding: Finding) -> dict[str, Any]:
    """A judged claim, JSON-ready."""
    return {"name": finding.claim.name, "verdict": finding.verdict, "here": finding.here, **asdict(finding)}
