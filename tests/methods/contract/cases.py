"""Methods, their options and backbones to hold under every clause of the contract (`harness.contract.checks`).

The cases are spread over the files beside this one so that none of them takes long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from harness import methods
from harness.contract.case import ContractCase
from harness.contract.checks import CHECKS
from harness.models.decoders import Decoder
from harness.registry import METHODS, method_config_class

Options = dict[str, Any]
OWN = ("full", "decoder", "bitfit", "layernorm", "ssf")
LOW_RANK = ("lora", "samed", "dora")
SHARED = ("vera", "fact")
CELLS = ("naslora", "naspclora")
BESIDE = ("vpt", "lst")
ADAPTERS = tuple(
    name for name in methods.BUILTIN if name not in (*OWN, *LOW_RANK, *SHARED, "convlora", *CELLS, *BESIDE)
)
TRUNK_CLAUSES = ("identity", "gradient", "count", "merge")
"""Those that depend on a trunk."""


def under_every_clause(
    cases: Iterable[tuple[str, Options]],
    *,
    backbone: str = "tiny",
    decoder: Decoder = "sam",
    checks: Iterable[str] = tuple(CHECKS),
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A test with one parameter, ``clause``: a function without arguments that raises where the clause is broken.

    Args:
        checks: which clauses; all of them by default.
    """
    clauses = []
    for name, options in cases:
        label = "-".join([name, *(f"{key}={value}" for key, value in options.items()), backbone])
        subject = {
            "method": name,
            "config": method_config_class(name)(**options),
            "backbone": backbone,
            "decoder": decoder,
        }
        for check in checks:
            clauses.append(pytest.param(_clause(check, **subject), id=f"{label}-{check}"))
    return pytest.mark.parametrize("clause", clauses)


def _clause(check: str, *, method: str, **subject: Any) -> Callable[[], str]:
    return lambda: CHECKS[check](ContractCase(method=METHODS.get(method), **subject))
