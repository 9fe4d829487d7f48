"""What the pages say of measured times is what the committed files hold."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

from benchmarks import publish
from harness.comparison.step_costs import paired_ratio
from harness.planning.request import require_countable
from tests.values import REPOSITORY, RESULTS

PAGE, DETAILS = REPOSITORY / "docs" / "performance.md", REPOSITORY / "docs" / "details" / "performance.md"
MEASURED = RESULTS / "benchmarks"


def measured(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((MEASURED / name).read_text(encoding="utf-8"))
    return content


def interval(estimate: dict[str, float]) -> str:
    return f"{estimate['value']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"


def line_of(start: str) -> str:
    """The row of a target on the page of performance or on that of its details."""
    lines = (line for page in (PAGE, DETAILS) for line in page.read_text(encoding="utf-8").splitlines())
    (row,) = (line for line in lines if line.startswith(start))
    return row


def ratio(name: str) -> tuple[str, ...]:
    estimate = measured(name)["ratio"]
    return tuple(f"{estimate[part]:.2f}" for part in ("value", "low", "high"))


def test_an_evaluations_price_is_that_of_the_files() -> None:
    text = (REPOSITORY / "docs" / "metrics.md").read_text(encoding="utf-8")
    said = re.findall(r"(\d\.\d\d) \[(\d\.\d\d), (\d\.\d\d)\] times", text)
    assert said == [ratio("evaluation-vit_small-252-fp32.json"), ratio("evaluation-vit_t-256-fp32.json")]
    row = line_of("| evaluation of a split")
    (name,) = re.findall(r"results/benchmarks/([\w.-]+)", row)
    assert re.findall(r"\*\*(\d\.\d\d)\*\* \[(\d\.\d\d), (\d\.\d\d)\]", row) == [ratio(name)]
    assert float(ratio(name)[2]) <= 1.3


def test_the_rows_of_starting_are_those_of_their_file() -> None:
    rows = measured("startup.json")["rows"]
    helped = [row["processor time (s)"] for row in rows if row["what"].endswith("--help")]
    below = f"{sum(seconds < 0.5 for seconds in helped)} of {len(helped)} verbs below"
    told = f"**{min(helped):.2f} to {max(helped):.2f}** s (medians of five), {below}"
    assert told in line_of("| `--help` of any verb")
    (plan,) = [row for row in rows if "1008 runs" in row["what"]]
    assert median_in_rounds(plan, "five") in line_of("| `--plan` of 1,008 runs")


def median_in_rounds(row: dict[str, Any], times: str) -> str:
    low, high = min(row["rounds (s)"]), max(row["rounds (s)"])
    return f"**{row['processor time (s)']:.2f}** s ({low:.2f} to {high:.2f}, {times} times)"


def test_the_rows_of_a_large_archive_are_those_of_its_file() -> None:
    medians = {row["what"]: median_in_rounds(row, "three") for row in measured("archive-25000.json")["rows"]}
    for row, what in (
        ("| `status` over 25,001", "status, nothing touched"),
        ("| `tables` over 25,001", "tables, nothing touched"),
        ("| `--plan` of 22,401", "plan of 22401 runs"),
    ):
        assert medians[what] in line_of(row)
    require_countable(22_401)  # the plan is small enough to be made


def test_the_rows_of_peers_are_those_of_their_files() -> None:
    whole = measured("peers-vit_b-1024-fp32.json")
    (lora, conv), (lora_512, conv_512) = (
        (
            [interval(ratios[f"lora / lora hf-{kind}"]) for kind in ("sdpa", "eager")],
            interval(ratios["convlora / convlora autogluon"]),
        )
        for ratios in (whole["ratios"], measured("peers-vit_b-512-fp32.json")["ratios"])
    )
    assert f"{lora[0]} of sdpa, {lora[1]} of eager" in line_of(
        "| step time of LoRA against transformers' SAM encoder with peft's LoRA | B"
    )
    assert conv in line_of("| step time of Conv-LoRA against AutoGluon's")
    said = line_of("| both at 512 px")
    assert f"LoRA {lora_512[0]} of sdpa, {lora_512[1]}" in said
    assert f"Conv-LoRA {conv_512}" in said
    half, full = (measured(f"peers-vit_b-512-{name}.json")["ratios"] for name in ("bf16", "fp32-avx512"))
    bf16, sdpa, eager = (
        interval(of[f"lora / lora hf-{kind}"]) for of, kind in ((half, "sdpa"), (full, "sdpa"), (full, "eager"))
    )
    assert f"**{bf16[:4]}**{bf16[4:]} of sdpa" in (
        said := line_of("| step time of LoRA against transformers' SAM encoder with peft's LoRA, 512")
    )
    assert f"fp32: {sdpa} of sdpa, {eager} of eager" in said
    medians = {name: statistics.median(of) for name, of in measured("peers-vit_b-512-bf16.json")["seconds"].items()}
    assert f"(median {medians['lora']:.2f} against {medians['lora hf-sdpa']:.2f} s)" in said
    (whole_half,) = measured("peers-vit_b-1024-bf16.json")["ratios"].values()
    six = line_of("| these six | bf16")
    assert f"{bf16} of sdpa at 512 px" in six
    assert f"{interval(whole_half)} at 1024 px" in six
    shares = whole["share_of_limit"]
    told = f"LoRA {100 * shares['lora']:.0f} %, Conv-LoRA {100 * shares['convlora']:.0f} %"
    assert told in line_of("| share of the limit")
    live = {name: size / 2**30 for name, size in whole["live_bytes"].items()}
    ours, sdpa, eager = live["lora"], live["lora hf-sdpa"], live["lora hf-eager"]
    said = f"{ours / sdpa:.3f} and {ours / eager:.3f} ({ours:.2f} against {sdpa:.2f} and {eager:.2f} GiB live, exact)"
    told = f"{said}; Conv-LoRA {live['convlora'] / live['convlora autogluon']:.3f}"
    assert told in line_of("| memory of these steps")
    said, file = line_of("| forward passes of an evaluation"), measured("evaluation-peers-vit_b-1024-fp32.json")
    assert all(interval(estimate) in said for estimate in (*file["peers"].values(), file["ratio"]))


def test_steps_of_two_sessions_are_pooled_in_their_rows() -> None:
    files = [measured(f"step-vit_b-1024-fp32-{end}.json")["seconds"] for end in (12, 24)]
    seconds = {name: [value for file in files for value in file[name]] for name in files[0]}
    for row, first, second, digits in [
        ("| step time of LoRA against plain | B", "lora", "lora plain", 2),
        ("| NAS-LoRA step / LoRA step | B", "naslora", "lora", 3),
    ]:
        pooled = paired_ratio(seconds[first], seconds[second])
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
    text = (REPOSITORY / "docs" / "metrics.md").read_text(encoding="utf-8")
    for name, case in measured("metrics-speed-1024.json")["masks"].items():
        row = (
            f"| {name} | {1000 * case['theirs']:.0f} | {1000 * case['ours']:.1f} | {case['ratio']:.1f} "
            f"| {case['ratio_all_cores']:.1f} | {case['difference']:.0e} |"
        )
        assert row in text


def test_what_spinning_costs_is_that_of_its_files() -> None:
    text = DETAILS.read_text(encoding="utf-8").partition("| rounds of spinning |")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines()[2:]]
    for column, name in enumerate(("waiting-quiet.json", "waiting-busy.json"), start=1):
        seconds = measured(name)["seconds"]
        medians = {key: statistics.median(values) for key, values in seconds.items() if key != "one thread"}
        for row in rows:
            key = "default" if row[0] == "libgomp's own" else f"spin {row[0].replace(',', '')}"
            expected = f"{medians[key] / min(medians.values()):.2f}" if key in medians else "not timed"
            assert row[column] == expected, (name, row)


def test_costs_against_full_fine_tuning_are_those_of_the_sessions() -> None:
    """On the page of performance the default of NAS-LoRA's methods is spelt out: turns."""
    costs = (RESULTS / "tables" / "cost.md").read_text(encoding="utf-8")
    page = DETAILS.read_text(encoding="utf-8").partition("| against full fine-tuning |")[2]
    told = {row[0]: row[1:] for row in _rows(page.partition("\n\n")[0])}
    assert len(told) == 6
    for name, cells in told.items():
        plain = name.partition(", ")[0].replace("[alternate=iteration]", "")
        session = " #aa0273" if "both" in name else " #de744c"
        for shown, backbone, end in ((cells[:3], "tiny", ""), (cells[3:], "vit_b", session)):
            headings = (line for line in costs.splitlines() if line.startswith("### cost against"))
            block = costs.partition(next(line for line in headings if backbone in line))[2].partition("\n\nRatios")[0]
            rows = {(row[0], row[1]): row for row in _rows(block)}
            row = rows.get((f"{plain}{end} §", "full"), rows.get((f"{plain} §", "full")))
            expected = ["–"] * 3
            if row is not None:
                time, _, flops, memory = (cell.replace("-", "−").replace(" [", " % [") for cell in row[2:6])
                expected = [time, f"{memory} %", f"{flops} %"]
            assert shown == expected, (name, backbone)


def test_ratios_of_the_cost_sessions_are_told_as_they_are() -> None:
    def times(end: str) -> dict[str, Any]:
        """Of a session: variant -> its step time against LoRA's."""
        path = RESULTS / "cost" / f"089f904b2626a80f-{end}.json"
        methods = json.loads(path.read_text(encoding="utf-8"))["methods"]
        return {method["variant"]: method["ratios"].get("lora", {}).get("time") for method in methods}

    first, second = times("de744ca3"), times("aa027345")
    turns, both, joint = first["naslora"], second["naslora[alternate=both]"], second["naslora[alternate=joint]"]
    told = f"**{turns['value']:.3f}** [{turns['low']:.3f}, {turns['high']:.3f}]"
    assert told in line_of("| NAS-LoRA average step in")
    assert interval(both) in line_of("| the same with `both`")
    assert f"`joint`, one pass for both, takes {interval(joint)} times LoRA's" in DETAILS.read_text(encoding="utf-8")
    average = f"{1 / first['decoder']['value']:.1f} on the average of 40 epochs"
    assert average in line_of("| LoRA step / decoder-only step")


def _rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| method")]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]


def test_what_is_said_of_whole_trainings_is_what_their_files_hold() -> None:
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    sam, vit = (measured(f"end-to-end-{name}.json") for name in ("mobile_sam-512-fp32", "vit_b-512-bf16"))

    def processor(file: dict[str, Any], name: str) -> str:
        return f"{next(ratio for pair, ratio in file['ratios'].items() if pair.startswith(f'{name} /'))['processor_s']['value']:.2f}"

    def saved(key: str) -> float:
        cold, warm = (
            statistics.median(usage[key] for usage in sam["rounds"][name])
            for name in ("this harness", "this harness, warm")
        )
        return cold - warm

    assert (
        f"MobileSAM takes {processor(sam, 'this harness')} (warm {processor(sam, 'this harness, warm')}) and ViT-B at 512 px "
        f"{processor(vit, 'this harness')} of theirs. On MobileSAM a cache saves {saved('wall_s'):.0f} of 60 s, "
        f"{saved('first_update_s'):.0f} of them before the first update"
    ) in page
