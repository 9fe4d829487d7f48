"""What the passes of an update share and what each draws for itself."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.training.batches import draw_number
from harness.training.outcome import Progress
from tests.harness.training.tiny import Run, protocol, summary


def test_the_same_seed_gives_the_same_weights_whatever_else_draws_and_another_seed_others(tmp_path: Path) -> None:
    def draws(progress: Progress) -> None:
        torch.rand(3)

    rules = protocol(epochs=2)
    first, second, other = (
        summary(
            Run(folder=tmp_path / str(k), method="convlora", seed=seed, report=report, rules=rules, images=4).train()
        )
        for k, (seed, report) in enumerate([(0, lambda progress: None), (0, draws), (1, draws)])
    )
    assert first == second
    assert first["last"] != other["last"]


def test_the_noise_of_every_step_is_its_own(tmp_path: Path) -> None:
    run = Run(folder=tmp_path, method="convlora", images=4, seed=3, rules=protocol(epochs=2))
    seeds: list[tuple[int, int]] = []

    def look(progress: Progress) -> None:
        if progress.kind == "step":
            seeds.append((run.attached.generator.initial_seed(), torch.initial_seed()))

    run.report = look
    run.train()
    places = [(3, epoch, step, 0) for epoch in range(2) for step in range(2)]
    assert seeds == [(draw_number("method", *place), draw_number("torch", *place)) for place in places]
    assert len(set(seeds)) == 4


def test_one_image_a_pass_makes_statistics_and_balance_those_of_one_image(tmp_path: Path) -> None:
    """The released Conv-LoRA: `per_gpu_batch_size` 1, gradients of four passes averaged."""
    seen: dict[str, list[tuple[int, float]]] = {}
    for name, rules in {"one": {"batch_size": 1, "accumulate": 4}, "four": {"batch_size": 4}}.items():
        run = Run(folder=tmp_path / name, method="convlora", images=4, rules=protocol(epochs=1, flip=0.0, **rules))
        passes = seen.setdefault(name, [])
        balance = run.attached.auxiliary_loss

        def look(balance: Any = balance, passes: Any = passes, run: Run = run) -> Any:
            extra = balance()
            maps = next(iter(run.attached.mixtures().values()))  # type: ignore[attr-defined]
            passes.append((len(maps._epsilon), float(extra.detach())))
            return extra

        run.attached.auxiliary_loss = look  # type: ignore[method-assign]
        run.train()
    windows = {name: [count for count, _ in passes] for name, passes in seen.items()}
    assert (len(windows["one"]), len(windows["four"])) == (4, 1)
    assert windows["four"] == [4 * windows["one"][0]]
    single, four = (statistics.fmean(value for _, value in seen[name]) for name in ("one", "four"))
    assert single > 1.5 * four, "few maps cannot be shared out evenly among eight experts"


def test_accumulated_batches_equal_one_large_batch(tmp_path: Path) -> None:
    large = Run(folder=tmp_path / "large", images=8, rules=protocol(batch_size=4, epochs=2)).train()
    small = Run(folder=tmp_path / "small", images=8, rules=protocol(batch_size=2, accumulate=2, epochs=2)).train()
    for a, b in zip(large.history, small.history, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        assert a["updates"] == b["updates"] == {"weights": 2}
