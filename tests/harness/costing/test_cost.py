"""The verb: a record that reads back, methods interleaved, keys that keep apart what differs, one line an error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from harness import cost
from harness.costing import measure as measuring
from harness.costing.measure import Row, Session, measure
from harness.costing.subject import PARTS, Subject
from harness.protocols.load import load_protocol
from harness.records.cost import Comparability, CostStore
from harness.registry import METHODS, method_config_class

SMALL = {"image_size": 64, "batch_size": 2, "epochs": 20}


def _session(*names: str, **options: object) -> Session:
    protocol = load_protocol("demo", SMALL)
    rows = [Row(method=name, config=method_config_class(name)(), variant=name) for name in names]
    return Session(rows=rows, backbone="vit_t", checkpoint=None, protocol=protocol, rounds=2, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def record():
    return measure(_session("full", "lora", "naslora", "decoder"))


def test_every_quantity_is_measured(record) -> None:
    by_name = {method.variant: method for method in record.methods}
    assert list(by_name) == ["full", "lora", "naslora", "decoder"]
    for method in record.methods:
        assert sum(method.shares.values()) == pytest.approx(1)
        for parts in (*method.seconds.values(), method.step_seconds):
            assert set(parts) == set(PARTS)
            for number in range(record.rounds):
                pieces = sum(parts[name][number] for name in PARTS if name != "total")
                assert pieces == pytest.approx(parts["total"][number])
                assert parts["forward"][number] > 0
        memory = method.memory_bytes
        assert memory["allocated"] >= memory["weights"] + memory["optimiser"] + memory["activations"]
        # Every block's cell has eight α, and they have steps of their own.
        architecture = 4 * 8 if method.method == "naslora" else 0
        assert memory["gradients"] == 4 * (method.parameters["trainable"] - architecture)
        assert method.flops["backward"] > 0
        assert method.checkpoint_bytes > 4 * method.parameters["trainable"]
        assert len(method.inference_seconds["unmerged"]) == record.rounds
    full, lora, decoder = by_name["full"], by_name["lora"], by_name["decoder"]
    assert decoder.parameters["encoder"] == 0
    assert full.parameters["encoder"] > lora.parameters["encoder"] > 0
    assert full.memory_bytes["allocated"] > lora.memory_bytes["allocated"] > decoder.memory_bytes["allocated"]
    assert full.flops["encoder_forward"] == full.flops["closed_form"]
    assert lora.flops["encoder_forward"] > lora.flops["closed_form"]
    # Full fine-tuning needs weight gradients besides those of inputs, LoRA the latter alone.
    assert 1.8 < full.flops["backward"] / full.flops["forward"] < 2.4
    assert lora.flops["backward"] < 1.4 * lora.flops["forward"]


def test_merged_models_lose_the_adapters_parameters(record) -> None:
    lora = next(method for method in record.methods if method.variant == "lora")
    full = next(method for method in record.methods if method.variant == "full")
    assert lora.inference_parameters["unmerged"] > lora.inference_parameters["merged-exact"]
    assert lora.inference_parameters["merged-exact"] == full.inference_parameters["unmerged"]
    assert lora.inference_memory_bytes["merged-exact"] == full.inference_memory_bytes["unmerged"]


def test_search_cost_is_a_share_of_its_own(record) -> None:
    naslora = next(method for method in record.methods if method.variant == "naslora")
    assert set(naslora.seconds) == {"weights", "architecture"}
    assert naslora.shares["architecture"] > 0
    for number in range(record.rounds):
        expected = sum(naslora.shares[role] * naslora.seconds[role]["total"][number] for role in naslora.shares)
        assert naslora.step_seconds["total"][number] == pytest.approx(expected)


def test_cached_embeddings_are_a_step_of_their_own(record) -> None:
    decoder = next(method for method in record.methods if method.variant == "decoder")
    assert decoder.shares == {"weights": pytest.approx(2 / 20), "weights-cached": pytest.approx(18 / 20)}
    assert sum(decoder.seconds["weights-cached"]["forward"]) < sum(decoder.seconds["weights"]["forward"])


def test_ratios_are_taken_to_the_baselines_that_are_there(record) -> None:
    by_name = {method.variant: method for method in record.methods}
    assert set(by_name["lora"].ratios) == {"full"}
    assert set(by_name["naslora"].ratios) == {"full", "lora"}
    ratio = by_name["naslora"].ratios["full"]
    assert set(ratio) == {"time", "memory", "flops", "device_hours"}
    assert ratio["time"].rounds == record.rounds
    assert ratio["time"].low < ratio["time"].value < ratio["time"].high
    assert ratio["memory"].low is None


def test_a_record_reads_back_as_it_was(record, tmp_path: Path) -> None:
    store = CostStore(tmp_path)
    path = store.write(record)
    (back,) = store
    assert back == record
    path.with_name("broken.json").write_text("{")
    newer = json.loads(path.read_text()) | {"schema_version": 99}
    path.with_name("newer.json").write_text(json.dumps(newer))
    assert list(store) == [record]
    assert {bad.name for bad in store.problems()} == {"broken.json", "newer.json"}


def test_methods_take_turns_round_by_round(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    step = Subject.step

    def noted(self: Subject, phase):
        order.append(self.variant)
        return step(self, phase)

    monkeypatch.setattr(Subject, "step", noted)
    monkeypatch.setattr(measuring, "_measure_sizes", lambda subject, session, report: _no_sizes(subject))
    measure(_session("full", "lora", "bitfit"))
    assert order == ["full", "lora", "bitfit"] * 2


def _no_sizes(subject: Subject) -> dict:
    return {
        "memory_bytes": {"allocated": 1},
        "flops": {"forward": 1.0, "backward": 1.0},
        "not_counted": {},
        "parameters": {},
        "checkpoint_bytes": 0,
    }


def test_the_key_keeps_apart_what_differs() -> None:
    base = {
        "device": "a",
        "driver": "",
        "threads": 2,
        "torch": "2",
        "precision": "fp32",
        "backbone": "vit_t",
        "image_size": 64,
        "batch": 1,
        "task": "binary",
    }
    keys = {Comparability(**base).key}
    other = {
        "device": "b",
        "threads": 1,
        "torch": "3",
        "precision": "bf16",
        "backbone": "vit_b",
        "image_size": 128,
        "batch": 2,
    }
    for name, value in other.items():
        keys.add(Comparability(**{**base, name: value}).key)
    keys.add(Comparability(**base, options={"fused_attention": False}).key)
    assert len(keys) == 2 + len(other)


@pytest.mark.parametrize(
    "name", [name for name in METHODS.names() if name not in ("full", "lora", "naslora", "decoder")]
)
def test_every_method_can_be_measured(name: str) -> None:
    subject = measuring.build_subject(_session(name).rows[0], _session(name))
    try:
        for phase in subject.shares():
            assert subject.step(phase)["total"] > 0
    finally:
        subject.close()


def test_the_multiclass_task_is_measured_in_half_precision() -> None:
    protocol = load_protocol("demo", {**SMALL, "precision": "bf16", "mask_tokens": 3})
    session = _session("lora", task="multiclass", num_classes=4)
    from dataclasses import replace

    record = measure(replace(session, protocol=protocol))
    assert record.comparability.precision == "bf16"
    assert record.methods[0].ratios == {}


COMMAND = [
    "--methods",
    "lora,decoder",
    "--backbone",
    "vit_t",
    "--protocol",
    "demo",
    "--rounds",
    "1",
    "--image-size",
    "64",
]


def test_the_verb_writes_a_record_and_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert cost.main([*COMMAND, "--shared", "--results", str(tmp_path), "--device", "cpu", "--set", "lora.rank=2"]) == 0
    (record,) = CostStore(tmp_path)
    assert record.methods[0].config["rank"] == 2
    out = capsys.readouterr().out
    assert "against lora[rank=2]" in out or "lora[rank=2]" in out
    assert "weights-cached" in out


def test_a_device_in_use_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.costing.device.used_by_others", lambda device: "other processes use 1.5 of 2 cores")
    assert cost.main([*COMMAND, "--results", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "1.5 of 2 cores" in error
    assert "--shared" in error
    assert not list(tmp_path.iterdir())
    assert cost.main([*COMMAND, "--shared", "--results", str(tmp_path)]) == 0
    (record,) = CostStore(tmp_path)
    assert record.shared == "other processes use 1.5 of 2 cores"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "lorra"], "did you mean 'lora'"),
        (["--methods", "lora", "--backbone", "vit_x"], "unknown backbone"),
        (["--methods", "lora", "--rounds", "0"], "at least one round"),
        (["--methods", "lora", "--backbone", "vit_t", "--image-size", "100"], "take 96 or 112"),
        (
            ["--methods", "lora", "--backbone", "vit_t", "--clock", "processor", "--threads", "2", "--shared"],
            "--threads 1",
        ),
        (["--methods", "lora", "--device", "gpu"], "give cpu or cuda:N"),
        (["--methods", "lora", "--device", "cuda:77"], "CUDA devices"),
        (["--methods", "lora,lora", "--backbone", "vit_t", "--shared"], "have one name"),
        (["--methods", "lora", "--set", "fused_atention=false"], "fused_attention"),
    ],
)
def test_bad_input_gets_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    threads = torch.get_num_threads()
    assert cost.main([*arguments, "--protocol", "demo"]) == 2
    torch.set_num_threads(threads)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_help_imports_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, harness.cost as c; c.parser().format_help(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_peaks_do_not_depend_on_which_other_methods_are_measured() -> None:
    alone = measure(_session("lora")).methods[0]
    beside = measure(_session("full", "lora")).methods[1]
    assert alone.memory_bytes["allocated"] == beside.memory_bytes["allocated"]
    assert alone.memory_bytes["activations"] == beside.memory_bytes["activations"]
    assert torch.get_num_threads() >= 1
