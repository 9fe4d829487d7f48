"""What the pages say of an evaluation's price is what the committed files hold."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path

ROOT = Path(__file__).parents[2]
MEASURED = ROOT / "results" / "benchmarks"


def ratio(name: str) -> tuple[str, str, str]:
    found = json.loads((MEASURED / name).read_text(encoding="utf-8"))["ratio"]
    return tuple(f"{found[part]:.2f}" for part in ("value", "low", "high"))  # type: ignore[return-value]


def test_an_evaluations_price_is_that_of_the_files() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    said = re.findall(r"(\d\.\d\d) \[(\d\.\d\d), (\d\.\d\d)\] times", text)
    assert said == [ratio("evaluation-vit_small-252-fp32.json"), ratio("evaluation-vit_t-256-fp32.json")]


def test_the_row_of_evaluations_is_that_of_its_file() -> None:
    lines = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8").splitlines()
    (row,) = [line for line in lines if line.startswith("| evaluation of a split")]
    (name,) = re.findall(r"results/benchmarks/([\w.-]+)", row)
    assert re.findall(r"\*\*(\d\.\d\d)\*\* \[(\d\.\d\d), (\d\.\d\d)\]", row) == [ratio(name)]
    assert float(ratio(name)[2]) <= 1.3


def test_the_rows_of_starting_are_those_of_their_file() -> None:
    lines = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8").splitlines()
    rows = json.loads((MEASURED / "startup.json").read_text(encoding="utf-8"))["rows"]
    helped = [row["processor time (s)"] for row in rows if row["what"].endswith("--help")]
    (told,) = [line for line in lines if line.startswith("| `--help` of any verb")]
    below = sum(seconds < 0.5 for seconds in helped)
    assert f"{min(helped):.2f} to {max(helped):.2f} s (medians of three), {below} of {len(helped)} verbs below" in told
    (plan,) = [row for row in rows if "1008 runs" in row["what"]]
    (told,) = [line for line in lines if line.startswith("| `--plan` of 1,008 runs")]
    low, high = min(plan["rounds (s)"]), max(plan["rounds (s)"])
    assert f"**{plan['processor time (s)']:.2f}** s ({low:.2f} to {high:.2f}, three times)" in told


def test_what_spinning_costs_is_that_of_its_files() -> None:
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8").partition("| rounds of spinning |")[2]
    rows = [
        [cell.strip() for cell in line.strip("| ").split("|")] for line in text.partition("\n\n")[0].splitlines()[2:]
    ]
    for column, name in enumerate(("waiting-quiet.json", "waiting-busy.json"), start=1):
        seconds = json.loads((MEASURED / name).read_text(encoding="utf-8"))["seconds"]
        medians = {key: statistics.median(values) for key, values in seconds.items() if key != "one thread"}
        for row in rows:
            key = "default" if row[0] == "libgomp's own" else f"spin {row[0].replace(',', '')}"
            found = f"{medians[key] / min(medians.values()):.2f}" if key in medians else "not timed"
            assert row[column] == found, (name, row)
