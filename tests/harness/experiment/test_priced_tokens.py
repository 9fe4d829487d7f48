"""What a plan says of the tokens of frozen blocks is what runs write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.contract.case import IMAGE_SIZE as SIZE
from harness.contract.case import ContractCase
from harness.dispatch.place import Place
from harness.experiment.experiment import run_experiment
from harness.methods.parts.placement import MethodError
from harness.models.catalog import backbone_shape
from harness.planning.plan import Plan
from harness.planning.request import Variant
from harness.pricing import forecast as disk
from harness.pricing.forecast import Forecast
from harness.pricing.price import forecast_text, price
from harness.registry import METHODS, method_config_class
from harness.training.prefix import frozen_prefix
from tests.harness.planned import plan_of

ON_CPU, ON_GPU = Place(executor="inline", threads=1), Place(executor="inline", devices=("0",))


def planned(
    root: Path, method: str = "lora", *, backbone: str = "tiny", blocks: str = "last-half", **rules: Any
) -> Plan:
    small = {"image_size": SIZE, "epochs": 1, "train_limit": 3, "val_limit": 2, "test_limit": 2, "merge": []}
    entry = Variant(method=method, options={"blocks": blocks})
    return plan_of(root, entry, backbones=(backbone,), **{**small, "cache_images": False, **rules})


def priced(root: Path, made: Plan, *, where: Place = ON_CPU) -> Forecast:
    return price(made, root, where=where)


def written(root: Path, made: Plan) -> int:
    """Bytes of the tokens that the plan's run leaves."""
    (job,) = made.jobs
    assert run_experiment(job).code == "OK"
    return sum(path.stat().st_size for path in (root / "cache").rglob("*.embeddings"))


@pytest.mark.parametrize(
    ("method", "changes", "kept"),
    [
        ("lora", {}, True), ("lora", {"precision": "bf16"}, True), ("lora", {"backbone": "tiny_timm"}, True),
        ("lora", {"blocks": "all"}, False), ("lora", {"cache_prefix": False}, False), ("samadapter", {}, False),
    ],
)  # fmt: skip
def test_a_run_keeps_as_many_bytes_of_tokens_as_its_plan_says(tmp_path: Path, method: str, changes: Any, kept: bool):
    made = planned(tmp_path, method, **changes)
    forecast = priced(tmp_path, made)
    assert forecast.token_cache_bytes == written(tmp_path, made)
    assert (forecast.token_cache_bytes > 0) == ("tokens" in forecast_text(forecast)) == kept
    assert ("tokens of frozen blocks 0.00 GiB" in forecast_text(forecast)) == kept
    assert priced(tmp_path, made, where=ON_GPU).token_cache_bytes == 0


def test_a_split_too_large_for_a_file_is_priced_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = priced(tmp_path, made := planned(tmp_path)).token_cache_bytes
    for module in ("harness.pricing.forecast", "harness.experiment.experiment"):
        monkeypatch.setattr(f"{module}.TOKEN_BYTES", needed - 1)
    assert priced(tmp_path, made).token_cache_bytes == written(tmp_path, made) == 0


@pytest.mark.parametrize("backbone", ["tiny", "tiny_timm", "tiny_dinov3", "tiny_sam3", "tiny_mobile_sam", "tiny_sam2"])
@pytest.mark.parametrize(
    "asked", [{"blocks": "last-half"}, {"blocks": "last-half", "outside": False}, {"blocks": "all"}]
)
def test_every_method_keeps_the_blocks_that_its_plan_expects(backbone: str, asked: dict[str, Any]) -> None:
    shape = backbone_shape(backbone, SIZE)
    kept = {}
    for name in METHODS.names():
        cls = method_config_class(name)
        if asked != {"blocks": "last-half"} and [*asked][-1] not in cls.__dataclass_fields__:  # the first again
            continue
        config = cls(**{key: value for key, value in asked.items() if key in cls.__dataclass_fields__})
        try:
            segmenter, _ = ContractCase(method=METHODS.get(name), config=config, backbone=backbone).attached()
        except MethodError:  # not on this backbone
            continue
        prefix = frozen_prefix(segmenter)
        kept[name] = prefix.blocks if prefix else None
        assert disk.kept_blocks(config, shape) == kept[name], name
    some = {"tiny": "last-half", "tiny_timm": "last-half", "tiny_mobile_sam": asked["blocks"]}
    assert "outside" in asked or (kept["lora"] is not None) == (some.get(backbone) == asked["blocks"])
