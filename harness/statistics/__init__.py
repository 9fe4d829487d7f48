# ruff: noqa: F401 - what the room gives its callers as `harness.statistics.NAME`
"""Statistics of comparisons: small n, paired by seed and image, every random draw from a seeded generator."""

from harness.statistics.families import Family, family, max_t
from harness.statistics.intervals import (
    POWER,
    Estimate,
    Interval,
    Scores,
    VarianceShare,
    average_of,
    crossed,
    detectable,
    differ,
    digits_of,
    iqm,
    of_folds,
    of_seeds,
    of_splits,
    paired,
    sd,
    seeds_for_power,
    seeds_to_detect,
    t_interval,
    with_pooled_runs,
)
from harness.statistics.ranks import (
    ALPHA,
    MOST_ORDERS,
    Agreement,
    ModelScores,
    Test,
    agreement,
    average_ranks,
    friedman,
    holm,
    nemenyi_critical_difference,
    probability_of_improvement,
    rank_stability,
    sign_flip,
    stratified_interval,
)
