"""What the pages say of measured times is what the committed files hold."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

from benchmarks import publish
from harness.costing.measure import paired_ratio

ROOT = Path(__file__).parents[2]
PAGE, DETAILS = ROOT / "docs" / "performance.md", ROOT / "docs" / "details" / "performance.md"
MEASURED = ROOT / "results" / "benchmarks"


def measured(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((MEASURED / name).read_text(encoding="utf-8"))
    return found


def interval(found: dict[str, float]) -> str:
    return f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def line_of(start: str) -> str:
    """The row of a target on the page of performance or on that of its details."""
    lines = [line for page in (PAGE, DETAILS) for line in page.read_text(encoding="utf-8").splitlines()]
    (row,) = [line for line in lines if line.startswith(start)]
    return row


def ratio(name: str) -> tuple[str, str, str]:
    found = json.loads((MEASURED / name).read_text(encoding="utf-8"))["ratio"]
    return tuple(f"{found[part]:.2f}" for part in ("value", "low", "high"))  # type: ignore[return-value]


def test_an_evaluations_price_is_that_of_the_files() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    said = re.findall(r"(\d\.\d\d) \[(\d\.\d\d), (\d\.\d\d)\] times", text)
    assert said == [ratio("evaluation-vit_small-252-fp32.json"), ratio("evaluation-vit_t-256-fp32.json")]


def test_the_row_of_evaluations_is_that_of_its_file() -> None:
    row = line_of("| evaluation of a split")
    (name,) = re.findall(r"results/benchmarks/([\w.-]+)", row)
    assert re.findall(r"\*\*(\d\.\d\d)\*\* \[(\d\.\d\d), (\d\.\d\d)\]", row) == [ratio(name)]
    assert float(ratio(name)[2]) <= 1.3


def test_the_rows_of_starting_are_those_of_their_file() -> None:
    rows = measured("startup.json")["rows"]
    helped = [row["processor time (s)"] for row in rows if row["what"].endswith("--help")]
    told = line_of("| `--help` of any verb")
    below = sum(seconds < 0.5 for seconds in helped)
    assert (
        f"**{min(helped):.2f} to {max(helped):.2f}** s (medians of five), {below} of {len(helped)} verbs below" in told
    )
    (plan,) = [row for row in rows if "1008 runs" in row["what"]]
    told = line_of("| `--plan` of 1,008 runs")
    low, high = min(plan["rounds (s)"]), max(plan["rounds (s)"])
    assert f"**{plan['processor time (s)']:.2f}** s ({low:.2f} to {high:.2f}, five times)" in told


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("| `status` over 25,001", "status, nothing touched"),
        ("| `tables` over 25,001", "tables, nothing touched"),
        ("| `--plan` of 22,401", "plan of 22401 runs"),
    ],
)
def test_the_rows_of_a_large_archive_are_those_of_its_file(row: str, what: str) -> None:
    (found,) = [one for one in measured("archive-25000.json")["rows"] if one["what"] == what]
    low, high = min(found["rounds (s)"]), max(found["rounds (s)"])
    assert f"**{found['processor time (s)']:.2f}** s ({low:.2f} to {high:.2f}, three times)" in line_of(row)


def test_the_rows_of_peers_are_those_of_their_files() -> None:
    found = measured("peers-vit_b-1024-fp32.json")["ratios"]
    said = line_of("| step time of LoRA against transformers'")
    assert (
        f"{interval(found['lora / lora hf-sdpa'])} of sdpa, {interval(found['lora / lora hf-eager'])} of eager" in said
    )
    assert interval(found["convlora / convlora autogluon"]) in line_of("| step time of Conv-LoRA against AutoGluon's")
    found, said = measured("peers-vit_b-512-fp32.json")["ratios"], line_of("| both at 512 px")
    assert f"LoRA {interval(found['lora / lora hf-sdpa'])} of sdpa, {interval(found['lora / lora hf-eager'])}" in said
    assert f"Conv-LoRA {interval(found['convlora / convlora autogluon'])}" in said
    shares = measured("peers-vit_b-1024-fp32.json")["share_of_limit"]
    told = f"LoRA {100 * shares['lora']:.0f} %, Conv-LoRA {100 * shares['convlora']:.0f} %"
    assert told in line_of("| share of the limit")
    live = {name: size / 2**30 for name, size in measured("peers-vit_b-1024-fp32.json")["live_bytes"].items()}
    ours, sdpa, eager = live["lora"], live["lora hf-sdpa"], live["lora hf-eager"]
    said = f"{ours / sdpa:.3f} and {ours / eager:.3f} ({ours:.2f} against {sdpa:.2f} and {eager:.2f} GiB live, exact)"
    assert f"{said}; Conv-LoRA {live['convlora'] / live['convlora autogluon']:.3f}" in line_of(
        "| memory of these steps"
    )
    said, file = line_of("| forward passes of an evaluation"), measured("evaluation-peers-vit_b-1024-fp32.json")
    for ratio_ in (*file["peers"].values(), file["ratio"]):
        assert interval(ratio_) in said


def test_steps_of_two_sessions_are_pooled_in_their_rows() -> None:
    files = [measured(f"step-vit_b-1024-fp32-{end}.json")["seconds"] for end in (12, 24)]
    seconds = {name: [value for file in files for value in file[name]] for name in files[0]}
    for row, one, other, digits in [
        ("| step time of LoRA against plain | B", "lora", "lora plain", 2),
        ("| NAS-LoRA step / LoRA step | B", "naslora", "lora", 3),
    ]:
        pooled = paired_ratio(seconds[one], seconds[other])
        value, low, high = (f"{getattr(pooled, part):.{digits}f}" for part in ("value", "low", "high"))
        assert pooled.rounds == 24
        assert f"**{value}** [{low}, {high}]" in line_of(row)


def test_where_a_step_goes_is_told_as_it_was() -> None:
    page = " ".join(DETAILS.read_text(encoding="utf-8").split())
    for size, said in (
        (1024, "matrix products take {products:.1f} of the {all:.1f} s of the sixteen"),
        (512, "At 512 px they take {products:.1f} of {all:.1f} s"),
    ):
        spent = measured(f"profile-vit_b-{size}-fp32.json")["operations"]["lora"]
        products = sum(spent[f"aten::{name}"] for name in ("mm", "addmm", "bmm"))
        assert said.format(products=products, all=sum(spent.values())) in page
        if size == 1024:
            peers = measured("peers-vit_b-1024-fp32.json")
            rate = peers["flops"]["lora"] / products
            share = 100 * rate / peers["matmul_flops_per_s"]
            assert f"run at {rate / 1e9:.0f} GFLOP/s, {share:.0f} % of what" in page


@pytest.mark.parametrize("page", [PAGE, DETAILS], ids=["performance", "details"])
def test_rendered_blocks_are_what_their_files_give(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert publish.published(page, text) == text
    name = next(name for name, block in publish.BLOCKS.items() if block.page == page)
    assert publish.published(page, publish.put(text, name, "| another | table |")) == text
    assert publish.PICTURE.exists() == bool(publish.BLOCKS["trainings"].content())


def test_steps_beside_their_peers_are_told_with_their_ratio() -> None:
    told = publish.steps({"file.json": measured("peers-vit_b-512-fp32.json")})
    ratio_ = measured("peers-vit_b-512-fp32.json")["ratios"]["lora / lora hf-sdpa"]
    (row,) = [line for line in told.splitlines() if "lora hf-sdpa" in line]
    assert f"**{ratio_['value']:.2f}** [{ratio_['low']:.2f}, {ratio_['high']:.2f}]" in row


def test_the_table_of_metrics_is_that_of_its_file() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    for name, found in measured("metrics-speed-1024.json")["masks"].items():
        row = (
            f"| {name} | {1000 * found['theirs']:.0f} | {1000 * found['ours']:.1f} | {found['ratio']:.1f} "
            f"| {found['ratio_all_cores']:.1f} | {found['difference']:.0e} |"
        )
        assert row in text


def test_what_spinning_costs_is_that_of_its_files() -> None:
    text = DETAILS.read_text(encoding="utf-8").partition("| rounds of spinning |")[2]
    rows = [
        [cell.strip() for cell in line.strip("| ").split("|")] for line in text.partition("\n\n")[0].splitlines()[2:]
    ]
    for column, name in enumerate(("waiting-quiet.json", "waiting-busy.json"), start=1):
        seconds = measured(name)["seconds"]
        medians = {key: statistics.median(values) for key, values in seconds.items() if key != "one thread"}
        for row in rows:
            key = "default" if row[0] == "libgomp's own" else f"spin {row[0].replace(',', '')}"
            found = f"{medians[key] / min(medians.values()):.2f}" if key in medians else "not timed"
            assert row[column] == found, (name, row)


def test_costs_against_full_fine_tuning_are_those_of_the_sessions() -> None:
    """On the page of performance the default of NAS-LoRA's methods is spelt out: turns."""
    costs = (ROOT / "results" / "tables" / "cost.md").read_text(encoding="utf-8")
    page = DETAILS.read_text(encoding="utf-8").partition("| against full fine-tuning |")[2]
    told = {row[0]: row[1:] for row in _rows(page.partition("\n\n")[0])}
    assert len(told) == 6
    for name, cells in told.items():
        method, _, _ = name.partition(", ")
        for found, (backbone, end) in zip(
            (cells[:3], cells[3:]),
            (("tiny", ""), ("vit_b", " #aa0273" if "both" in name else " #de744c")),
            strict=True,
        ):
            heading = next(
                line for line in costs.splitlines() if line.startswith("### cost against") and backbone in line
            )
            rows = {(row[0], row[1]): row for row in _rows(costs.partition(heading)[2].partition("\n\nRatios")[0])}
            plain = method.replace("[alternate=iteration]", "")
            row = rows.get((f"{plain}{end} §", "full"), rows.get((f"{plain} §", "full")))
            if row is None:
                assert found == ["–"] * 3, name
                continue
            time, _, flops, memory = (cell.replace("-", "−").replace(" [", " % [") for cell in row[2:6])
            assert found == [time, f"{memory} %", f"{flops} %"], (name, backbone)


def test_ratios_of_the_cost_sessions_are_told_as_they_are() -> None:
    first, second = (
        {one["variant"]: one for one in json.loads(path.read_text(encoding="utf-8"))["methods"]}
        for path in (ROOT / "results" / "cost" / f"089f904b2626a80f-{end}.json" for end in ("de744ca3", "aa027345"))
    )
    turns, both, joint = (
        found[name]["ratios"]["lora"]["time"]
        for found, name in (
            (first, "naslora"),
            (second, "naslora[alternate=both]"),
            (second, "naslora[alternate=joint]"),
        )
    )
    assert f"**{turns['value']:.3f}** [{turns['low']:.3f}, {turns['high']:.3f}]" in line_of(
        "| NAS-LoRA average step in"
    )
    assert interval(both) in line_of("| the same with `both`")
    page = DETAILS.read_text(encoding="utf-8")
    assert f"`joint`, one pass for both, takes {interval(joint)} times LoRA's" in page
    average = 1 / first["decoder"]["ratios"]["lora"]["time"]["value"]
    assert f"{average:.1f} on the average of 40 epochs" in line_of("| LoRA step / decoder-only step")


def _rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| method")]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
