"""Frames give the numbers that pages print, by another way: pandas alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.archive.archive import RUN, Archive, frame

RESULTS = Path(__file__).parents[3] / "results"


@pytest.fixture(scope="module")
def archive() -> Archive:
    return Archive(RESULTS)


def test_means_and_deviations_of_the_frame_are_those_of_a_committed_page(archive: Archive) -> None:
    scores = frame(archive, "scores")
    mine = scores[(scores.protocol == "mini") & (scores.model == "best") & (scores.split == "test")]
    cells = {
        f"{100 * mean:.1f} ± {100 * deviation:.1f} ({count})"
        for mean, deviation, count in mine.groupby(["protocol_hash", "variant", "benchmark", "metric"])["value"]
        .agg(["mean", "std", "count"])
        .itertuples(index=False)
        if count > 1
    }
    page = (RESULTS / "tables" / "mini.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ") and "updates" not in line]
    printed = {cell for row in rows for cell in re.findall(r"\d+\.\d ± \d+\.\d \(\d\)", row)}
    assert len(printed) > 30
    assert printed <= cells


def test_the_mean_over_images_is_the_score(archive: Archive) -> None:
    records = [record for record in archive.records if record.run.benchmark == "kvasir"][:5]
    where = ["key", "model", "split", "metric"]
    images = frame(archive, "images", records).groupby(where)["value"].mean()
    scores = frame(archive, "scores", records).set_index(where)["value"]
    both = scores.index.intersection(images.index)
    both = both[both.get_level_values("metric") == "s_measure"]
    assert len(both) >= len(records)
    assert (images[both] - scores[both]).abs().max() < 1e-6


def test_shares_of_operations_sum_to_one_at_every_site_and_epoch(archive: Archive) -> None:
    records = [record for record in archive.records if record.run.method == "naslora"][:3]
    alphas = frame(archive, "alphas", records)
    sums = alphas.groupby(["key", "epoch", "site"])["share"].sum()
    assert len(sums)
    assert (sums - 1).abs().max() < 1e-4
    assert set(alphas.key) <= {record.key for record in records}


def test_evidence_and_costs_are_those_of_their_records(archive: Archive) -> None:
    evidence = frame(archive, "evidence")
    assert {"key", *RUN} <= set(evidence)
    for key, rows in evidence[evidence.quantity == "distance_px"].groupby("key"):
        record = archive.evidence(next(one for one in archive.records if one.key == key))
        assert record is not None
        told = [value for block in record.blocks for value in block.trained.distance_px]
        assert list(rows.sort_values(["block", "place"]).trained) == told
    costs = frame(archive, "costs")
    for session in archive.costs:
        rows = costs[(costs.session == session.session) & (costs.quantity == "step_seconds") & (costs.part == "total")]
        assert list(rows.value) == [value for one in session.methods for value in one.step_seconds["total"]]


def test_a_folder_without_records_gives_empty_frames(tmp_path: Path) -> None:
    for kind in ("scores", "images", "alphas", "evidence", "costs"):
        assert frame(Archive(tmp_path), kind).empty
