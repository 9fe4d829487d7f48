"""What a page says of a rate that was chosen."""

from __future__ import annotations

import pytest

from harness.reporting.tuned import _score


@pytest.mark.parametrize(("score", "words"), [(None, "diverged"), (0.876, "87.6"), (1.0, "100.0")])
def test_a_trial_has_its_score_in_points_or_diverged(score: float | None, words: str) -> None:
    assert _score(score) == words
