"""Where the time of finished runs went, by method, from their records: the share of a run that is no update.

``python -m benchmarks.shares --results results --backbone mobile_sam``. Shares are medians over runs that one start finished; what a
command does before and after its runs (plans, tables) is in no record: `benchmarks.end_to_end` measures it.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from tabulate import tabulate

from benchmarks.saving import add_json, save
from harness.archive.schema import Record
from harness.archive.store import RecordStore

STAGES = {
    "start and loading": ("start", "loading"),
    "validating": ("validating",),
    "testing": ("testing",),
    "the rest": ("merging", "other"),
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--backbone", default="mobile_sam")
    add_json(parser)
    options = parser.parse_args(argv)
    runs = by_method(options.results, options.backbone)
    save(options.json, options=options, measured={"runs": runs})
    print(table(runs))
    return 0


def by_method(results: Path, backbone: str) -> dict[str, list[dict[str, float]]]:
    """Method -> `shares` of each of its runs on this backbone that has them."""
    runs: dict[str, list[dict[str, float]]] = {}
    for record in RecordStore(results).summaries()[0]:
        if record.run.backbone == backbone and (parts := shares(record)):
            runs.setdefault(record.run.method, []).append(parts)
    return runs


def shares(record: Record) -> dict[str, float]:
    """``minutes`` of a run and the share of its parts, which sum up to 1, and that ``outside passes`` of the network; empty of one that did
    not train in one start, or that an earlier version recorded."""
    cost = record.cost
    seconds = {
        name.removeprefix("stage_").removesuffix("_s"): value
        for name, value in cost.items()
        if name.startswith("stage_")
    }
    if record.code != "OK" or record.attempts != 1 or not seconds or not cost.get("steps"):
        return {}
    whole = sum(seconds.values())
    updates = min(cost["train_time_s"] - cost["data_wait_s"] * cost["steps"], seconds["training"])
    parts = {"updates": updates, "training beside them": seconds["training"] - updates}
    parts |= {name: sum(seconds[stage] for stage in stages) for name, stages in STAGES.items()}
    return {
        "minutes": whole / 60,
        **{name: part / whole for name, part in parts.items()},
        "outside passes": 1 - cost["passes_s"] / whole,
    }


def table(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    rows = []
    for method, each in sorted(runs.items()):
        minutes, outside = ([run[key] for run in each] for key in ("minutes", "outside passes"))
        parts = [
            f"{100 * statistics.median(run[name] for run in each):.1f} %"
            for name in each[0]
            if name not in ("minutes", "outside passes")
        ]
        spread = f"{100 * statistics.median(outside):.1f} % ({100 * min(outside):.1f} to {100 * max(outside):.1f})"
        rows.append([method, len(each), f"{min(minutes):.1f} to {max(minutes):.1f}", *parts, spread])
    names = next((list(each[0])[1:] for each in runs.values()), [])
    return tabulate(rows, headers=["method", "runs", "minutes", *names], tablefmt="github", disable_numparse=True)


if __name__ == "__main__":
    raise SystemExit(main())
