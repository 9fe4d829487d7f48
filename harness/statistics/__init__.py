# ruff: noqa: F401 - what the room gives its callers as `harness.statistics.NAME`
"""Statistics of comparisons: small n, paired by seed and image, every random draw from a seeded generator."""

from harness.statistics.families import Family, family, max_t
from harness.statistics.intervals import (
    Estimate,
    Interval,
    Scores,
    VarianceShare,
    average_of,
    crossed,
    differ,
    of_folds,
    of_seeds,
    sd,
    t_interval,
)
