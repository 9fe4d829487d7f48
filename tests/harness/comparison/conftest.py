"""The rules of the card demo are those of the records made up here (`tests.harness.report.sample`)."""

from __future__ import annotations

import pytest

from tests.harness.report.sample import known_card


@pytest.fixture(autouse=True)
def _card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.comparison.rules.card_rules", known_card)
