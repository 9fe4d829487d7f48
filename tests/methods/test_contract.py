"""Methods, their options, backbones and decoders under every clause of the contract (`harness.contract.checks`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from harness import methods
from harness.contract.case import ContractCase
from harness.contract.checks import CHECKS
from harness.methods.base import Method, MethodConfig
from harness.methods.parts.placement import MethodError
from harness.models.build import build_segmenter
from harness.models.catalog import backbone_shape
from harness.registry import METHODS, load_plugin, method_config_class
from tests.methods.compared import attached

OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("lora", {"sites": "q,k,v,proj,mlp", "blocks": "1,3"}),
    ("lora", {"scaling": "rslora", "rank": 9}),
    ("lora", {"sites": "decoder"}),
    ("dora", {"sites": "proj,mlp"}),
    ("fact", {"sites": "q,v,mlp", "rank": 4}),
    ("convlora", {"gate": "switch", "expert_bias": "zero"}),
    ("convlora", {"scope": "image", "sites": "q,v"}),
    ("naslora", {"operations": "no-conv", "sites": "q,v"}),
    ("naslora", {"residual": True}),
    ("naslora", {"norm": "none", "operations": "no-pool"}),
    ("naslora", {"style": "linear", "scope": "image"}),
    ("naspclora", {"style": "linear"}),
    ("naspclora", {"style": "linear", "residual": True}),
    ("hira", {"sites": "k,proj,decoder", "rank": 2}),
    ("adapter", {"sites": "mlp", "hidden": 8}),
    ("vpt", {"blocks": "global", "tokens": 3}),
    ("lst", {"blocks": "0,2-3", "reduction": 4}),
    ("samadapter", {"scale": 16, "blocks": "windowed", "patch_embedding": "released"}),
    ("ssf", {"init": "released", "outside": False}),
]

# What a trunk has no place for: the word that its one line holds.
REFUSED = {
    "tiny_dinov3": {"ssf": "no bias at q, k and v"},
    "tiny_mobile_sam": {"lst": "one ladder", "samadapter": "one embedding", "rein": "one width"},
    "tiny_sam2": {"lst": "one ladder", "samadapter": "one embedding", "rein": "one width", "convpass": "width or map"},
    "tiny_sam3": {"ssf": "no bias at its patch projection"},
}
OF_TRUNK = ("identity", "gradient", "count", "merge")
"""The clauses that depend on a trunk."""
OF_MAPS = ("placement", "state", "autocast", "batch", "checkpointing")
"""Those that could depend on windows and on where tokens change their map, of methods that see maps or run blocks themselves."""
SEE_MAPS: list[tuple[str, dict[str, Any]]] = [
    (name, {}) for name in ("full", "lora", "convlora", "naslora", "vpt", "mona")
]
UNSCHEDULED = tuple(clause for clause in CHECKS if clause != "schedule")
"""When a method trains what hangs neither on a trunk nor on its other options."""
HEART = ("identity", "gradient", "merge")
TRAINED = ("gradient", "merge")
"""What `make test` asks of a method on other trunks and under other options; *gradient* attaches it, too."""

PLUGINS = Path(__file__).parents[2] / "docs" / "examples"


def _on(backbone: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every method that fits ``backbone``."""
    for name in methods.BUILTIN:
        if name not in REFUSED.get(backbone, {}):
            yield name, {}


def _clauses(
    cases: Iterable[tuple[str, dict[str, Any]]],
    *,
    backbone: str = "tiny",
    decoder: str = "sam",
    checks: Iterable[str] = tuple(CHECKS),
    fast: Iterable[str] = tuple(CHECKS),
) -> Iterator[Any]:
    """``fast``: the clauses that ``make test`` runs, too; the others are left to ``make test-slow``."""
    for name, options in cases:
        label = "-".join([name, *(f"{key}={value}" for key, value in options.items()), backbone, decoder])
        for check in checks:
            marks = () if check in fast else pytest.mark.slow
            yield pytest.param(name, options, backbone, decoder, check, id=f"{label}-{check}", marks=marks)


@pytest.mark.parametrize(
    ("name", "options", "backbone", "decoder", "check"),
    [
        *_clauses(_on("tiny")),
        *_clauses(_on("tiny_timm"), backbone="tiny_timm", fast=("gradient",)),
        *_clauses(OPTIONS, checks=UNSCHEDULED, fast=TRAINED),
        *_clauses(_on("tiny_dinov3"), backbone="tiny_dinov3", checks=OF_TRUNK, fast=("gradient",)),
        *_clauses(_on("tiny_mobile_sam"), backbone="tiny_mobile_sam", checks=UNSCHEDULED, fast=TRAINED),
        *_clauses(_on("tiny_sam2"), backbone="tiny_sam2", checks=OF_TRUNK, fast=("gradient",)),
        *_clauses(SEE_MAPS, backbone="tiny_sam2", checks=OF_MAPS, fast=()),
        *_clauses([("naslora", {"sites": "q,v,proj", "scope": "image"})], backbone="tiny_sam2", checks=HEART),
        *_clauses(_on("tiny_sam3"), backbone="tiny_sam3", checks=OF_TRUNK, fast=("gradient",)),
        *_clauses([*SEE_MAPS, ("lst", {}), ("convpass", {})], backbone="tiny_sam3", checks=OF_MAPS, fast=()),
        *_clauses([("ssf", {"outside": False}), ("lora", {"sites": "q,v"})], backbone="tiny_sam3", checks=HEART),
        *_clauses(
            [("naslora", {"scope": "image"})], backbone="tiny_mobile_sam", checks=(*OF_TRUNK, "batch", "autocast")
        ),
        *_clauses([("lora", {})], backbone="tiny_timm", decoder="linear", fast=TRAINED),
        *_clauses([("naslora", {})], backbone="tiny_timm", decoder="mean-pool", checks=UNSCHEDULED, fast=TRAINED),
        *_clauses(
            [("lst", {}), ("naslora", {})], backbone="tiny_timm", decoder="class-token", checks=(*OF_TRUNK, "batch")
        ),
        *_clauses([("naslora", {})], backbone="tiny_timm", decoder="mask-transformer", fast=TRAINED),
        *_clauses([("naslora", {}), ("adapter", {})], backbone="tiny_timm", decoder="mask2former", checks=OF_TRUNK),
    ],
)
def test_method_fulfils_contract(name: str, options: dict[str, Any], backbone: str, decoder: Any, check: str) -> None:
    if decoder == "mask2former":
        pytest.importorskip("transformers")
    CHECKS[check](_case(METHODS.get(name), method_config_class(name)(**options), backbone, decoder))


@pytest.mark.parametrize(("name", "constant"), [("lora", "rows"), ("hira", "rows"), ("naslora", "_columns")])
def test_constants_of_a_method_are_no_part_of_its_state(name: str, constant: str) -> None:
    segmenter, method = attached(name, sites="q,v")
    assert any(each.endswith(f".{constant}") for each, _ in segmenter.named_buffers())
    assert not any(each.endswith(f".{constant}") for each in method.state())


@lru_cache(maxsize=1)
def _case(method: type[Method], config: MethodConfig, backbone: str, decoder: Any) -> ContractCase:
    """The checks of a case, which run one after the other, look at one training."""
    return ContractCase(method=method, config=config, backbone=backbone, decoder=decoder)


@pytest.mark.parametrize(
    ("backbone", "name", "word"),
    [(backbone, name, word) for backbone, refused in REFUSED.items() for name, word in refused.items()],
)
def test_what_a_trunk_lacks_is_refused_in_one_line(backbone: str, name: str, word: str) -> None:
    config = method_config_class(name)()
    with pytest.raises(MethodError, match=word) as caught:
        config.encoder_parameters(backbone_shape(backbone))
    assert "\n" not in str(caught.value)
    with pytest.raises(MethodError):
        METHODS.get(name)(config).attach(build_segmenter(backbone, task="binary"))


@pytest.mark.parametrize(("file", "name"), [("plugin.py", "ia3"), ("shortest.py", "gainlora")])
@pytest.mark.parametrize("check", CHECKS)
def test_worked_examples_fulfil_the_contract(check: str, file: str, name: str) -> None:
    CHECKS[check](_plugin(file, name))


@lru_cache
def _plugin(file: str, name: str) -> ContractCase:
    load_plugin(PLUGINS / file)
    method = METHODS.get(name)
    return ContractCase(method=method, config=method.config_class(), backbone="tiny")
