"""Every option of every method does something: off its default it changes the attached model's start or output, its groups, its
schedule of roles, or what a trained model computes."""

from __future__ import annotations

from dataclasses import asdict, fields
from functools import lru_cache
from typing import Any

import pytest
import torch

from harness import methods
from harness.contract.case import ContractCase, grouped_parameters
from harness.registry import METHODS, method_config, method_config_class
from tests.methods.compared import attached

OTHER: dict[str, Any] = {
    "lr": 0.5, "blocks": "last-half", "sites": "q,k,v,proj", "rank": 2, "alpha": 7.0, "scaling": "rslora",
    "experts": 3, "gate": "switch", "expert_bias": "zero", "scope": "image", "balance": 0.5,
    "scale": 2.0, "style": "linear", "operations": "no-pool", "alpha_std": 0.5, "alpha_lr": 0.5,
    "stagewise": False, "search_start_epoch": 1, "alternate": "joint", "alpha_data": "holdout",
    "order": "weights-first", "residual": True, "norm": "none", "channel_ratio": 1 / 3, "hidden": 5,
    "std": 0.1, "tokens": 3, "reduction": 4, "ratio": 0.5, "patch_embedding": "released", "outside": False, "init": "released",
    "encoder_lr": 0.5,
}  # fmt: skip
"""A value off the default, for every option by name."""
OF: dict[tuple[str, str], Any] = {
    ("adapter", "sites"): "mlp", ("convpass", "sites"): "mlp",
    ("samed", "sites"): "k", ("samed", "alpha"): None, ("samadapter", "scale"): 16,
    ("fact", "sites"): "q,v",
}  # fmt: skip
"""Another one for a method; None where the option has no other."""
OPTIONS = [
    (name, field.name)
    for name in methods.BUILTIN
    if method_config_class(name).trains
    for field in fields(method_config_class(name))
    if OF.get((name, field.name), "") is not None
]


def _traces(name: str, options: dict[str, Any]) -> list[Any]:
    """What a method does with a configuration, as far as it can differ."""
    case = ContractCase(method=METHODS.get(name), config=method_config(name, options), backbone="tiny")
    segmenter, method = case.attached(seed=1)
    groups = [(g.role, sorted(g.named), g.lr, g.weight_decay) for g in method.parameter_groups()]
    moments = [(epoch, step) for epoch in range(12) for step in range(2)]
    schedule = [method.passes_at(epoch=epoch, step=step) for epoch, step in moments]
    schedule += [method.architecture_holdout(), method.architecture_masks_shuffled()]  # type: ignore[list-item]
    start = {key: tensor.sum().item() for key, tensor in method.state().items()}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # so that nothing that starts at zero hides what multiplies it
        for parameter in grouped_parameters(method).values():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    loss = case.loss(segmenter.train(), method)
    return [groups, schedule, start, float(loss.detach())]


@lru_cache
def _usual(name: str) -> list[Any]:
    return _traces(name, {})


@pytest.mark.parametrize(("name", "option"), OPTIONS, ids=[f"{name}-{option}" for name, option in OPTIONS])
def test_an_option_off_its_default_changes_what_the_method_does(name: str, option: str) -> None:
    value = OF.get((name, option), OTHER.get(option))
    assert value is not None, f"give another value of {option} in OTHER"
    assert value != getattr(method_config_class(name)(), option)
    assert _traces(name, {option: value}) != _usual(name)


def test_defaults_are_what_they_were() -> None:
    """A default is out of a run's key where the option is younger than the first records, so that another one is another method."""
    for name in [*methods.BUILTIN, *methods.PEFT_METHODS]:
        config = method_config_class(name)
        assert asdict(config()) == methods.default_options(name), name
        assert config.__dataclass_params__.frozen
        assert all(field.kw_only for field in fields(config))


def test_what_trains_under_a_method_is_what_its_class_says() -> None:
    for name, entry in {**methods.BUILTIN, **methods.PEFT_METHODS}.items():
        config = method_config_class(name)()
        own = "own" if config.trains_encoder or config.freezes_decoder else "decoder"
        assert entry.trains == (own if config.trains else "nothing")


def test_two_rates_of_full_fine_tuning_are_each_in_a_group_of_its_own() -> None:
    _, method = attached("full", encoder_lr=3e-5, lr=1e-3)
    rates = {path: group.lr for group in method.parameter_groups() for path in group.named}
    assert {rate for path, rate in rates.items() if path.startswith("encoder.")} == {3e-5}
    assert {rate for path, rate in rates.items() if not path.startswith("encoder.")} == {1e-3}


def test_alpha_starts_as_wide_as_configured() -> None:
    _, method = attached("naslora", alpha_std=0.5, sites="q,k,v,proj,mlp")
    (architecture,) = [group for group in method.parameter_groups() if group.role == "architecture"]
    alphas = torch.cat([alpha.detach() for alpha in architecture.named.values()])
    assert alphas.std().item() == pytest.approx(0.5, rel=0.15)
    assert alphas.mean().item() == pytest.approx(0.0, abs=0.15)


def test_a_calibration_looks_at_every_batch() -> None:
    case = ContractCase(method=METHODS.get("naslora"), config=method_config("naslora", {}))
    outputs = []
    for batches in ([case.images[:2]], [case.images[:2], case.images[2:]], [case.images]):
        segmenter, method = case.trained()
        method.merge("calibrated", calibration=batches)
        outputs.append({key: tensor.clone() for key, tensor in segmenter.encoder.state_dict().items()})
    first, in_two, together = outputs
    assert any(not torch.equal(first[key], in_two[key]) for key in first)
    for key, tensor in in_two.items():
        torch.testing.assert_close(tensor, together[key], rtol=1e-3, atol=1e-4)
