"""A measurement: every quantity, every method, methods without memory left out, keys that keep apart what differs."""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.archive.measured import Comparability, CostStore
from harness.cli import cost
from harness.costing import measure as measuring
from harness.costing.measure import measure
from harness.costing.session import PARTS, Subject
from harness.protocols.load import load_protocol
from tests.harness.costing.small import SMALL, session_of


@pytest.fixture(scope="module")
def record():
    return measure(session_of("full", "lora", "naslora", "decoder"))


@pytest.fixture(scope="module")
def methods(record):
    """By name."""
    return {method.label: method for method in record.methods}


def test_every_quantity_is_measured(record, methods) -> None:
    assert list(methods) == ["full", "lora", "naslora", "decoder"]
    assert not {"num_classes", "mask_tokens"} & record.comparability.options.keys()
    for method in record.methods:
        searched = 0.5 if method.label == "naslora" else 0  # a pass for α in each step from epoch 10 of 20 on
        assert sum(method.shares.values()) == pytest.approx(1 + searched)
        for parts in (*method.seconds.values(), method.step_seconds):
            assert set(parts) == set(PARTS)
            for number in range(record.rounds):
                pieces = sum(parts[name][number] for name in PARTS if name != "total")
                assert pieces == pytest.approx(parts["total"][number])
                assert parts["forward"][number] > 0
        memory = method.memory_bytes
        assert memory["activations"] > 0
        assert memory["allocated"] >= memory["weights"] + memory["optimiser"] + memory["activations"]
        # Every block's cell has eight α, and they have steps of their own.
        architecture = 4 * 8 if method.method == "naslora" else 0
        assert memory["gradients"] == 4 * (method.parameters["trainable"] - architecture)
        assert method.flops["backward"] > 0
        assert len(method.inference_seconds["unmerged"]) == record.rounds
        assert method.inference_memory_bytes["unmerged"] > memory["weights"]
    full, lora, decoder = methods["full"], methods["lora"], methods["decoder"]
    assert decoder.parameters["encoder"] == 0
    assert full.parameters["encoder"] > lora.parameters["encoder"] > 0
    assert full.memory_bytes["allocated"] > lora.memory_bytes["allocated"] > decoder.memory_bytes["allocated"]
    assert lora.flops["forward"] > full.flops["forward"]
    # Full fine-tuning needs weight gradients besides those of inputs, LoRA the latter alone.
    assert 1.8 < full.flops["backward"] / full.flops["forward"] < 2.4
    assert lora.flops["backward"] < 1.4 * lora.flops["forward"]


def test_merged_models_lose_the_adapters_parameters(methods) -> None:
    lora, full = methods["lora"], methods["full"]
    assert lora.inference_parameters["unmerged"] > lora.inference_parameters["merged-exact"]
    assert lora.inference_parameters["merged-exact"] == full.inference_parameters["unmerged"]
    assert lora.inference_memory_bytes["merged-exact"] == full.inference_memory_bytes["unmerged"]


def test_search_cost_is_a_share_of_its_own(record, methods) -> None:
    naslora = methods["naslora"]
    assert set(naslora.seconds) == {"weights", "architecture"}
    assert naslora.shares["architecture"] > 0
    for number in range(record.rounds):
        expected = sum(naslora.shares[role] * naslora.seconds[role]["total"][number] for role in naslora.shares)
        assert naslora.step_seconds["total"][number] == pytest.approx(expected)


def test_cached_embeddings_are_a_step_of_their_own(methods) -> None:
    decoder = methods["decoder"]
    assert decoder.shares == {"weights": pytest.approx(2 / 20), "weights-cached": pytest.approx(18 / 20)}
    # Of ten steps one runs the encoder. Counted, not timed: other processes may take longer than a tiny encoder does.
    assert decoder.flops["forward"] < methods["full"].flops["forward"] / 2


def test_a_record_reads_back_as_it_was(record, tmp_path: Path) -> None:
    store = CostStore(tmp_path)
    path = store.write(record)
    (back,) = store.sessions()[0]
    assert back == record
    path.with_name("broken.json").write_text("{")
    path.with_name("newer.json").write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 99}))
    assert store.sessions()[0] == [record]
    assert {bad.name for bad in store.sessions()[1]} == {"broken.json", "newer.json"}


def test_an_option_may_be_negative_and_a_measured_number_not(record, tmp_path: Path) -> None:
    first = record.methods[1]
    lokr = replace(first, config={**first.config, "decompose_factor": -1})
    backwards, at_once = (replace(first, step_seconds={"total": [seconds]}) for seconds in (-1.0, 0.0))
    for number, method in enumerate((lokr, backwards, at_once)):
        CostStore(tmp_path / str(number)).write(replace(record, methods=[method]))
    assert not CostStore(tmp_path / "0").sessions()[1]
    assert "step_seconds.total.0: must be greater" in next(iter(CostStore(tmp_path / "1").sessions()[1].values()))
    assert "no clock" in next(iter(CostStore(tmp_path / "2").sessions()[1].values())), "nothing is a ratio to no time"


def test_the_key_knows_classes_mask_tokens_and_accumulation_and_leaves_binary_sessions_theirs() -> None:
    def comparability(task: str = "binary", *classes: int, **rules: object) -> Comparability:
        session = session_of("lora", task=task, **dict(zip(("num_classes",), classes, strict=False)))
        protocol = load_protocol("demo", {**SMALL, **rules})
        return measuring._record(replace(session, protocol=protocol), [], dropped={}).comparability

    plain = comparability(mask_tokens=1)
    assert not {"num_classes", "mask_tokens", "accumulate"} & plain.options.keys()
    assert comparability(mask_tokens=12).key == plain.key, "a binary head has one mask token"
    different = [
        comparability("multiclass", 2, mask_tokens=1),
        comparability("multiclass", 3, mask_tokens=1),
        comparability("multiclass", 3, mask_tokens=2),
        comparability(accumulate=4),
    ]
    assert different[1].options["num_classes"] == 3
    assert different[2].options["mask_tokens"] == 2
    assert different[3].options["accumulate"] == 4
    assert len({plain.key, *(other.key for other in different)}) == 5


def test_a_new_session_has_the_options_of_committed_ones_and_so_can_share_their_key() -> None:
    new = measuring._record(session_of("lora"), [], dropped={}).comparability
    committed = CostStore(Path(__file__).parents[3] / "results").sessions()[0]
    assert committed
    for record in committed:
        of_older = {name: value for name, value in record.comparability.options.items() if name not in new.options}
        assert of_older.keys() <= {"budget"}
    assert new.options.items() >= {"batched_decoder": True, "fused_cell": True}.items()


def test_peaks_do_not_depend_on_which_other_methods_are_measured(methods) -> None:
    begun = time.perf_counter()
    alone = measure(replace(session_of("lora"), rounds=1)).methods[0]
    assert 0 < sum(alone.inference_seconds["unmerged"]) < time.perf_counter() - begun
    for part in ("allocated", "activations"):
        assert alone.memory_bytes[part] == methods["lora"].memory_bytes[part]
    assert torch.get_num_threads() >= 1


COMMAND = ["--backbone", "tiny", "--protocol", "demo", "--rounds", "1", "--set", "image_size=64", "--shared"]


@pytest.mark.usefixtures("nobody_else")
@pytest.mark.parametrize("stage", ["build", "sizes", "training", pytest.param("inference", marks=pytest.mark.slow)])
def test_a_method_that_runs_out_of_memory_is_left_out_and_the_rest_is_written(stage, monkeypatch, tmp_path, says):
    def failing(function, sick):
        def called(*arguments, **options):
            if sick(*arguments):
                raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB")
            return function(*arguments, **options)

        return called

    def is_adapter(subject, *_) -> bool:
        return bool(subject.label == "adapter")

    counts = itertools.count(1)  # of steps: two to warm up, one for the peak, then the rounds
    owner, name, sick = {
        "build": (measuring, "build_subject", is_adapter),
        "sizes": (measuring, "peak_memory", is_adapter),
        "training": (Subject, "step", lambda subject, _: is_adapter(subject) and next(counts) > 3),
        "inference": (
            measuring,
            "_infer",
            lambda model, *_: any("adapter" in name for name, _ in model.named_modules()),
        ),
    }[stage]
    monkeypatch.setattr(owner, name, failing(getattr(owner, name), sick))
    said = says(cost.main, "--methods", "adapter,decoder", *COMMAND, "--results", tmp_path, code=1)
    (record,) = CostStore(tmp_path).sessions()[0]
    reason = "OOM: OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
    if stage != "build":
        reason += " (with 1 more of --methods: fewer in a session leave more room)"
    assert record.dropped == {"adapter": reason}
    assert [method.label for method in record.methods] == ["decoder"]
    assert len(record.methods[0].inference_seconds["unmerged"]) == 1
    assert f"Not measured: adapter: {reason}" in " ".join(said.split()), "lines are folded"
