"""Values that hold without the packages they came from.

The image is a formula. Saliency values: PySODMetrics 1.6.2 (uint8 input, its default normalisation); overlap and
multi-class values: torchmetrics 1.9.0; means over thresholds: the port in `test_pranet`. The small one is worked by
hand from the paper's equations.
"""

from __future__ import annotations

import numpy as np
import pytest

from harness.evaluation.conventions import CLASSES, METRICS, Conventions
from harness.evaluation.scorer import SplitScorer

Y, X = np.mgrid[:24, :32]
MASK = ((Y - 10) ** 2 * 2 + (X - 18) ** 2 < 90).astype(np.uint8)
PREDICTION = np.clip(255 - ((Y - 12) ** 2 * 2 + (X - 16) ** 2) * 3 // 2 + (X * 7 + Y * 13) % 11, 0, 255) / 255

GOLDEN = {
    "s_measure": 0.7935138854919954,
    "e_mean": 0.7368366827366799,
    "e_max": 0.889130461932877,
    "e_adaptive": 0.8864100952509761,
    "weighted_f": 0.6785779027039774,
    "mae": 0.16003880718954247,
    "dice_mean": 0.6580411748729912,
    "iou_mean": 0.5104612229100799,
    "iou": 0.636734664440155,
    "jaccard": 0.636734664440155,
    "dice": 0.7780548334121704,
    "ber": 0.1513535976409912,
    "miou": 0.7456549406051636,
    "accuracy": 0.8841145634651184,
}


RELEASED = ("weighted_f", Conventions(weighted_f_beta2=0.3), 0.6679727951152274)


@pytest.mark.parametrize(("metric", "rules", "value"), [*((m, None, GOLDEN[m]) for m in METRICS), RELEASED])
def test_golden_value(metric, rules, value):
    scorer = SplitScorer([metric], conventions=rules)
    assert scorer.measure(PREDICTION, MASK).values[metric] == pytest.approx(value, abs=1e-6)


def test_golden_multiclass():
    true, predicted = (X // 8 + Y // 12) % 4, ((X + 2) // 8 + (Y + 1) // 12) % 4
    values = SplitScorer(CLASSES, task="multiclass", num_classes=5).measure(predicted, true.astype(np.uint8)).values
    assert values == {"miou": pytest.approx(0.523809552192688, abs=1e-6), "accuracy": 0.6875}


def test_s_measure_worked_by_hand():
    """1×4, true [1, 1, 0, 0], predicted [1, 0.5, 0.5, 0].

    Object: inside x̄ = 3/4, σ = √(1/8); outside the same: 2·0.75 / (0.75² + 1 + √(1/8)). Region: the centroid 0.5
    rounds to column 0, so the quadrants are columns {0} and {1, 2, 3}. The first is constant in both: 1. The second:
    x = [.5, .5, 0], y = [1, 0, 0], both means 1/3: σxy = 1/12, σx² = 1/12, σy² = 1/3:
    4·(1/9)·(1/12) / ((2/9)·(5/12)) = 0.4. Weighted by pixels (1·1 + 3·0.4)/4.
    """
    scored = SplitScorer(["s_measure"]).measure(
        np.array([[1.0, 0.5, 0.5, 0.0]]), np.array([[1, 1, 0, 0]], dtype=np.uint8)
    )
    objects = 1.5 / (0.75**2 + 1 + (1 / 8) ** 0.5)
    regions = (1 + 3 * 0.4) / 4
    assert scored.values["s_measure"] == pytest.approx((objects + regions) / 2, abs=1e-12)
