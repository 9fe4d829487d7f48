"""The worked examples of `docs/plugins.md` fulfil the contract."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.contract.case import ContractCase
from harness.contract.checks import CHECKS
from harness.registry import METHODS, load_plugin

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "plugin.py"
SHORTEST = EXAMPLE.with_name("shortest.py")


@pytest.mark.parametrize("backbone", ["tiny", "tiny_timm"])
@pytest.mark.parametrize("check", CHECKS)
def test_worked_example_fulfils_the_contract(check: str, backbone: str) -> None:
    load_plugin(EXAMPLE)
    method = METHODS.get("ia3")
    CHECKS[check](ContractCase(method=method, config=method.config_class(), backbone=backbone))


@pytest.mark.parametrize("check", CHECKS)
def test_the_shortest_method_fulfils_the_contract(check: str) -> None:
    if "gainlora" not in METHODS.names():
        load_plugin(SHORTEST)
    method = METHODS.get("gainlora")
    CHECKS[check](ContractCase(method=method, config=method.config_class(), backbone="tiny"))
