"""Time to quality: which runs stand on one line, and where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.archive.archive import Archive
from harness.report.figures import draw
from harness.report.figures.curves import passes_of
from harness.report.figures.material import Material, NothingToDrawError, materials
from tests.harness.report.sample import record, store_of

RULES = {"epochs": 4, "lr": 1e-3, "epoch_images": 0}
SEARCH = {"alternate": "both", "search_start_epoch": 1}


def trained(method: str, value: float, *, epochs: int, seed: int = 0, updates: int = 0, **rules: Any) -> Any:
    weights = float(updates or 10 * epochs)
    alpha = {"alpha_updates": weights * 0.75} if method == "naslora" else {}
    return record(
        value, method=method, variant=method, seed=seed, config=SEARCH if method == "naslora" else None,
        rules={**RULES, "epochs": epochs, **rules}, protocol_hash=f"{epochs:08d}{rules.get('lr', 0)}",
        budget={"weight_updates": weights, **alpha},
    )  # fmt: skip


def written(root: Path, records: list[Any]) -> dict[int, Material]:
    """epochs -> sheet"""
    sheets = materials(Archive(store_of(root, records).root))
    return {int(material.grid.records[0].run.rules["epochs"]): material for material in sheets}


def drawn(material: Material) -> dict[str, tuple[list[float], list[float]]]:
    """label -> (passes, mean scores) of the right panel."""
    ((_, drawing),) = draw("lengths", material)
    lines = {str(line.get_label()): line for line in drawing.figure.axes[1].get_lines()}
    return {
        label: (list(map(float, line.get_xdata())), list(map(float, line.get_ydata())))  # type: ignore[arg-type]
        for label, line in lines.items()
        if not label.startswith("_")
    }


def test_a_line_has_every_length_at_its_passes_and_means(tmp_path: Path):
    by_epochs = written(
        tmp_path,
        [
            trained("lora", 0.5, epochs=1), trained("lora", 0.7, epochs=1, seed=1), trained("lora", 0.8, epochs=4),
            trained("naslora", 0.4, epochs=1), trained("naslora", 0.9, epochs=4),
        ],
    )  # fmt: skip
    lines = drawn(by_epochs[4])
    assert lines["lora"] == ([10, 40], pytest.approx([60, 80]))
    assert lines["naslora"] == ([17.5, 70], pytest.approx([40, 90]))
    ((_, drawing),) = draw("lengths", by_epochs[4])
    assert "n = 2 seeds (0, 1); protocol demo, hashes 000000010, 000000040; backbone" in drawing.caption


@pytest.mark.parametrize(
    ("first", "drawn_of", "said"),
    [
        (trained("lora", 0.5, epochs=1), 1, "drawn with the longest"),
        (
            trained("lora", 0.5, epochs=1, lr=3e-3),
            4,
            "epochs or epoch_images alone",
        ),  # which differ in more than length
        (record(0.5, rules={**RULES, "epochs": 1}, protocol_hash="1" * 16, budget={}), 4, "."),  # counts no updates
    ],
)
def test_the_figure_is_drawn_once_with_the_longest_of_runs_that_differ_in_length_alone(
    tmp_path: Path, first: Any, drawn_of: int, said: str
):
    by_epochs = written(tmp_path, [first, trained("lora", 0.8, epochs=4)])
    with pytest.raises(NothingToDrawError, match=said):
        list(draw("lengths", by_epochs[drawn_of]))


@pytest.mark.parametrize(
    ("config", "passes"),
    [
        ({"alternate": "joint"}, 40), ({"alternate": "both"}, 70), ({"alternate": "iteration"}, 70),
        ({"alternate": "iteration", "stagewise": False}, 40),
    ],
)  # fmt: skip
def test_an_update_of_alpha_has_a_pass_unless_it_shares_that_of_the_weights(config: dict[str, Any], passes: float):
    budget = {"weight_updates": 40.0, "alpha_updates": 30.0}
    assert passes_of(record(method="naslora", config=config, budget=budget)) == passes
