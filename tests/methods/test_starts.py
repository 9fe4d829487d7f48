"""What methods start from: the bound and the spread of what is drawn, as the released layers have them."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from harness.contract.case import ContractCase, grouped_parameters
from harness.registry import METHODS, method_config

UNIFORM, CUT_NORMAL = 3**-0.5, 0.44
"""SD by bound: of a uniform draw, and of a normal one that is cut at two standard deviations."""
ZERO = (0.0, 0.0)
LOW_RANK = {r"\.down$": (1 / 8, UNIFORM), r"\.up$": ZERO}  # of peft's LoRA and HiRA on 64 inputs
STARTS: list[tuple[str, dict[str, Any], dict[str, tuple[float, float]]]] = [
    ("lora", {}, LOW_RANK),
    ("hira", {}, LOW_RANK),
    ("fact", {"rank": 8}, {r"factors\.down": (1 / 8, UNIFORM), r"factors\.up": ZERO,
                           r"(qkv|proj|lin1)\.own$": (8**-0.5, UNIFORM), r"lin2\.own$": (32**-0.5, UNIFORM)}),
    ("convlora", {}, {r"\.experts\.\d\.(weight|bias)$": ((3 * 9) ** -0.5, UNIFORM)}),
    ("adapter", {"hidden": 16}, {r"\.adapter\..*weight$": (2e-2, CUT_NORMAL)}),
    ("vpt", {"tokens": 5}, {r"\.prompts$": ((6 / (3 * 16**2 + 64)) ** 0.5, UNIFORM)}),
    ("rein", {}, {r"\.(left|right)$": ((6 / (3 * 16**2 + (64 * 16) ** 0.5)) ** 0.5, UNIFORM), r"rein\.scale$": (1e-3, 0.0),
                  r"rein\.of_": (1 / 8, UNIFORM)}),
    ("mona", {}, {r"\.norm_share$": (1e-6, 0.0), r"(\.own_share|\.norm\.weight)$": (1.0, 0.0), r"\.(down|up)\.": (1 / 8, UNIFORM),
                  r"\.convolutions\.2\.": (1 / 7, UNIFORM)}),
    ("convpass", {}, {r"\.down\.weight$": ((6 / (64 + 8)) ** 0.5, UNIFORM), r"(\.up\.weight|\.bias)$": ZERO}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "expected"), STARTS, ids=[name for name, *_ in STARTS])
def test_parameters_start_as_released(
    name: str, options: dict[str, Any], expected: dict[str, tuple[float, float]]
) -> None:
    case = ContractCase(method=METHODS.get(name), config=method_config(name, options))
    named = {path: p for path, p in grouped_parameters(case.attached()[1]).items() if path.startswith("encoder.")}
    for pattern, (bound, spread) in expected.items():
        values = torch.cat([p.detach().flatten() for path, p in named.items() if re.search(pattern, path)])
        assert 0.96 * bound <= values.abs().max() <= bound * (1 + 1e-6), pattern
        assert float(values.std(correction=0)) == pytest.approx(spread * bound, rel=0.1, abs=1e-9), pattern
