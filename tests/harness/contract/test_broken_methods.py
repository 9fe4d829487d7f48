"""The contract (`harness.contract.checks`) under methods that break it: each is caught by the clause that it breaks."""

from __future__ import annotations

from dataclasses import make_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from harness.contract.case import ContractCase
from harness.contract.checks import CHECKS
from harness.contract.start import Violation
from harness.experiment.experiment import run_experiment
from harness.methods.base import MergeReport
from harness.methods.bitfit import BitFit, BitFitConfig
from harness.methods.lora import LoRA, LoRAConfig
from harness.registry import METHODS
from tests.harness.planned import job_of


def _answering(question: str, answer: int | None) -> Any:
    """LoRA's options, which say this of every shape."""
    return make_dataclass("Answering", [], bases=(LoRAConfig,), namespace={question: lambda *_: answer}, frozen=True)


class _Added(LoRA):
    """A method that is right, for the broken ones below to break."""


class _NotIdentity(_Added):
    def _insert(self, segmenter: Any) -> None:
        super()._insert(segmenter)
        next(iter(self.adapters().values())).up.data.fill_(1.0)


class _DeclaresDeviationFalsely(_Added):
    identity_at_init = False


class _TrainsMoreThanItDeclares(_Added):
    def parameter_groups(self) -> Any:
        (group,) = super().parameter_groups()
        group.named.pop(next(name for name in group.named if name.endswith(".up")))
        return [group]


class _NeverLearns(_Added):
    def _insert(self, segmenter: Any) -> None:
        super()._insert(segmenter)
        segmenter.encoder.idle = nn.Parameter(torch.zeros(3))


class _CountsWrong(_Added):
    config_class = _answering("encoder_parameters", 12345)


class _ChangesFrozenWeight(_Added):
    def auxiliary_loss(self) -> None:
        self.segmenter.get_parameter("encoder.neck.1.weight").data.add_(1e-3)


class _DropsState(_Added):
    def load_state(self, state: Any) -> None:
        super().load_state(self.state())


class _LaxState(_Added):
    def load_state(self, state: Any) -> None:
        known = self.state()
        fits = {name: own for name, own in state.items() if name in known and own.shape == known[name].shape}
        super().load_state({**known, **fits})


class _DrawsGlobally(_Added):
    def _insert(self, segmenter: Any) -> None:
        super()._insert(segmenter)
        torch.rand(1)


class _Overflow(nn.Module):
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens / 0.0 if torch.is_autocast_enabled("cpu") else tokens


class _NotFiniteUnderAutocast(_Added):
    def _core(self, layout: Any) -> nn.Module:
        return _Overflow()


class _MeanOfBatch(nn.Module):
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens + tokens.mean(dim=0, keepdim=True)


class _MixesImages(_Added):
    def _core(self, layout: Any) -> nn.Module:
        return _MeanOfBatch()


class _Counter(nn.Module):
    calls: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return tokens


class _CountsRecomputation(_Added):
    def _core(self, layout: Any) -> nn.Module:
        return _Counter()


class _IgnoresCheckpointing(_Added):
    def _insert(self, segmenter: Any) -> None:
        super()._insert(segmenter)
        segmenter.encoder.activation_checkpointing = False


class _IgnoresPlacement(_Added):
    def _insert(self, segmenter: Any) -> None:
        object.__setattr__(self.config, "blocks", "all")
        super()._insert(segmenter)


class _MergeLies(BitFit):
    def merge(self, mode: Any = "exact", *, calibration: Any = (), held_out: Any = ()) -> MergeReport:
        report = super().merge(mode, calibration=calibration, held_out=held_out)
        self.segmenter.get_parameter("encoder.neck.1.weight").data.add_(0.5)
        return report


class _LeavesAdapterBehind(BitFit):
    def _insert(self, segmenter: Any) -> None:
        super()._insert(segmenter)
        segmenter.encoder.register_buffer("left_over", torch.zeros(1))


class _MergesAnything(_Added):
    merge_modes = ()

    def merge(self, mode: Any = "exact", *, calibration: Any = (), held_out: Any = ()) -> MergeReport:
        return MergeReport(mode=mode)


class _CountsItsCalls(_Added):
    calls = 0

    def passes_at(self, *, epoch: int, step: int) -> tuple[Any, ...]:
        self.calls += 1
        return (("weights",),) if self.calls % 5 else ()


class _SaysNoGradientPasses(LoRA):
    config_class = _answering("gradient_from", None)


class _SaysItAddsNothing(LoRA):
    config_class = _answering("added_parameters", 0)


BROKEN = [
    (_NotIdentity, "identity", "declares identity at init"),
    (_DeclaresDeviationFalsely, "identity", "there is none"),
    (_TrainsMoreThanItDeclares, "gradient", "groups and requires_grad differ"),
    (_NeverLearns, "gradient", "no gradient within 3 steps"),
    (_CountsWrong, "count", "the closed form says"),
    (_ChangesFrozenWeight, "frozen", "which is frozen"),
    (_DropsState, "state", "restored state gives other outputs"),
    (_LaxState, "state", "is accepted"),
    (_DrawsGlobally, "determinism", "global generator"),
    (_NotFiniteUnderAutocast, "autocast", "autocast"),
    (_MixesImages, "batch", "if two images share a batch"),
    (_CountsRecomputation, "checkpointing", "differs by"),
    (_IgnoresCheckpointing, "checkpointing", "recomputes nothing"),
    (_IgnoresPlacement, "placement", "blocks=first-half"),
    (_CountsItsCalls, "schedule", "first and .* later"),
    (_SaysNoGradientPasses, "properties", "no gradient passes the backbone, but it reaches"),
    (_SaysItAddsNothing, "properties", "its configuration says 0"),
    (_MergeLies, "merge", "reports a deviation"),
    (_LeavesAdapterBehind, "merge", "left_over"),
    (_MergesAnything, "merge", "is accepted"),
]


@pytest.mark.parametrize(("method", "check", "message"), BROKEN, ids=[f"{m.__name__}-{c}" for m, c, _ in BROKEN])
def test_contract_catches_a_method_that_breaks_it(method: Any, check: str, message: str) -> None:
    config = BitFitConfig() if issubclass(method, BitFit) else method.config_class(blocks="all")
    with pytest.raises(Violation, match=message):
        CHECKS[check](ContractCase(method=method, config=config))


class _TrainsNothing(_Added):
    config_class = _answering("encoder_parameters", 0)

    def _insert(self, segmenter: Any) -> None:
        """Nothing."""


class _StartsWithNaN(_Added):
    identity_at_init = False

    def _insert(self, segmenter: Any) -> None:
        super()._insert(segmenter)
        next(iter(self.adapters().values())).up.data.fill_(float("nan"))


@pytest.mark.parametrize(
    ("method", "word"),
    [
        (_NotIdentity, "declares identity at init"),
        (_StartsWithNaN, "not finite"),
        (_CountsWrong, "the closed form says"),
        (_TrainsNothing, "nothing in the encoder trains"),
        (_Added, ""),
    ],
)
def test_a_run_refuses_a_method_that_does_not_start_or_count_as_it_declares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Any, word: str
) -> None:
    monkeypatch.setitem(METHODS._loaded, "lora", method)
    monkeypatch.setattr(METHODS, "get", METHODS._loaded.__getitem__)
    job = job_of(tmp_path, "lora", epochs=1, train_limit=2, val_limit=1, test_limit=1)
    monkeypatch.setattr("harness.experiment.building.from_mapping", lambda *_, **__: method.config_class())
    record = run_experiment(job)
    assert record.code == ("ERROR" if word else "OK"), record.message
    assert word in record.message
    assert not word or record.message.startswith("lora: ")


class _Normalises(_Added):
    """Running statistics that it names nowhere."""

    def _insert(self, segmenter: Any) -> None:
        super()._insert(segmenter)
        neck = segmenter.encoder.neck
        width = [module for module in neck.modules() if isinstance(module, nn.Conv2d)][-1].out_channels
        segmenter.encoder.neck = nn.Sequential(neck, nn.BatchNorm2d(width))


def test_running_statistics_of_inserted_modules_are_part_of_the_state() -> None:
    case = ContractCase(method=_Normalises, config=LoRAConfig())
    (trained, method), (fresh, other) = case.attached(), case.attached()
    with torch.no_grad():
        trained.train()(case.images)
        other.load_state(method.state())
        assert torch.equal(trained.eval()(case.images).masks, fresh.eval()(case.images).masks)
    assert [name.rpartition(".")[2] for name in method.own_buffers()] == [
        "running_mean",
        "running_var",
        "num_batches_tracked",
    ]
