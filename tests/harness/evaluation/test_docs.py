from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from harness.evaluation.conventions import METRICS, Conventions

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"


def test_the_page_explains_every_metric_and_every_convention():
    text = PAGE.read_text(encoding="utf-8")
    assert not [name for name in (*METRICS, *(field.name for field in fields(Conventions))) if f"`{name}`" not in text]
