"""Planned anew, every committed run keeps its key: an earlier run is found again, whatever planning has become."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from harness.archive.schema import Run
from harness.archive.store import RecordStore
from harness.planning import plan as planning
from harness.planning.data import Files, ImageCounts
from harness.planning.plan import Pretrained
from harness.planning.request import PlannedRow, Request
from harness.protocols.compare import NOT_THERE, from_protocol
from harness.protocols.keys import current_rules
from harness.protocols.load import load_protocol, protocol_names, protocol_rules
from harness.registry import BENCHMARKS, add_own_of, load_plugin
from tests.harness.planned import found_and_planned
from tests.values import RESULTS

FIRST_DEFAULTS: dict[str, dict[str, Any]] = {
    "demo": {"alternate": "iteration", "alpha_lr": 0.001},
    "mini": {"alternate": "iteration"},
}
"""Protocol -> options of NAS-LoRA that had another default, or another value in the protocol, when its first runs were made."""
GONE = {"gralora", "oft", "shira", "vera"}
"""Methods that were our own; under these names `harness.methods.peft` has others."""


@cache
def protocol_of(protocol: str) -> str:
    return protocol if protocol in protocol_names() else str(RESULTS / "analysis" / "protocols" / f"{protocol}.yaml")


def asked(run: Run) -> dict[str, Any]:
    """What a user asks for to get this run, apart from its row and seed: its protocol with ``--set``, its benchmark and backbone."""
    differing = from_protocol(current_rules(run.rules), protocol_rules(protocol_of(run.protocol), run.benchmark) or {})
    return {
        "protocol": protocol_of(run.protocol),
        "overrides": {name: ours for name, (ours, _) in differing.items() if ours != NOT_THERE},
        "benchmarks": [run.benchmark],
        "backbones": [run.backbone],
        "checkpoint": run.checkpoint,
        "manifest": run.manifest,
    }


def row(run: Run) -> dict[str, Any]:
    first = FIRST_DEFAULTS.get(run.protocol, {}) if run.method in ("naslora", "naspclora") else {}
    return {"method": run.method, "options": {**first, **run.changed}}


def test_every_committed_run_planned_anew_keeps_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the protocol, row, seed, split and manifest of its record; only the files themselves are not looked at."""
    if "origin" not in BENCHMARKS.names():
        load_plugin(RESULTS / "analysis" / "origin.py")
    records, problems = RecordStore(RESULTS).summaries()
    runs = [record.run for record in records if record.run.method not in GONE]
    assert not problems
    assert len(runs) >= 1221
    alike: dict[str, list[Run]] = {}
    for run in runs:
        add_own_of(run.benchmark, run.rules)
        alike.setdefault(json.dumps(asked(run)), []).append(run)
    found = set[str]()
    for text, held in alike.items():
        request = json.loads(text)
        files = Files(images=ImageCounts(train=1, val=1, test=1), manifest=request.pop("manifest"))
        weights = Pretrained(fingerprint=request.pop("checkpoint"))
        monkeypatch.setattr(planning, "files_of", lambda *_, files=files, **__: files)
        monkeypatch.setattr(planning, "pretrained", lambda *_, weights=weights: weights)
        protocol = load_protocol(request.pop("protocol"), request.pop("overrides"))
        rows = tuple(PlannedRow(**each) for each in {json.dumps(row(run)): row(run) for run in held}.values())
        seeds = tuple(dict.fromkeys(run.seed for run in held))
        planned = found_and_planned(Request(**request, protocol=protocol, rows=rows, seeds=seeds, results=Path("none")))
        found |= {job.run.key for job in planned.jobs}
    assert {run.key for run in runs} - found == set()
