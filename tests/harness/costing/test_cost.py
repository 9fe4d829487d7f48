"""The verb: a record that reads back, methods interleaved, keys that keep apart what differs, one line an error."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import cost
from harness.costing import inference
from harness.costing import measure as measuring
from harness.costing.baselines import baselines_among
from harness.costing.contestant import PARTS, Contestant
from harness.costing.measure import measure
from harness.costing.session import Measured, Session
from harness.errors import UsageError
from harness.planning.rows import method_row
from harness.planning.words import expand, parse_entry
from harness.protocols.load import load_protocol
from harness.records.cost import Comparability, CostStore
from harness.registry import METHODS, method_config_class
from methods.lora import LoRA

SMALL = {"image_size": 64, "batch_size": 2, "epochs": 20}


def _session(*names: str, **options: object) -> Session:
    protocol = load_protocol("demo", SMALL)
    rows = [Measured(method=name, config=method_config_class(name)(), variant=name) for name in names]
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
    step = Contestant.step

    def noted(self: Contestant, phase):
        order.append(self.variant)
        return step(self, phase)

    monkeypatch.setattr(Contestant, "step", noted)
    monkeypatch.setattr(measuring, "_sizes", _no_sizes)
    measure(_session("full", "lora", "bitfit"))
    assert order == ["full", "lora", "bitfit"] * 2


def _no_sizes(_: Contestant) -> dict:
    return {
        "memory_bytes": {"allocated": 1},
        "flops": {"forward": 1.0, "backward": 1.0},
        "not_counted": {},
        "parameters": {},
        "checkpoint_bytes": 0,
    }


def test_the_key_keeps_apart_what_differs() -> None:
    base: dict[str, Any] = {
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


def test_the_key_knows_classes_mask_tokens_and_accumulation_and_leaves_binary_sessions_theirs() -> None:
    def comparability(task: str = "binary", num_classes: int = 2, **rules: object) -> Comparability:
        session = _session("lora", task=task, num_classes=num_classes)
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
    assert len({plain.key, *(one.key for one in different)}) == 5


@pytest.mark.parametrize(
    "name", [name for name in METHODS.names() if name not in ("full", "lora", "naslora", "decoder")]
)
def test_every_method_can_be_measured_from_training_to_merged_inference(name: str) -> None:
    record = measure(replace(_session(name), rounds=1))
    (method,) = record.methods
    assert record.dropped == {}
    assert method.merge_failures == {}
    merged = {f"merged-{mode}" for mode in METHODS.get(name)(method_config_class(name)()).merge_modes}
    assert set(method.inference_seconds) == {"unmerged", *merged}
    for seconds in (method.step_seconds["total"], *method.inference_seconds.values()):
        assert len(seconds) == 1
        assert seconds[0] > 0


@pytest.mark.parametrize("place", ["build", "sizes", "training", "inference"])
def test_a_method_that_runs_out_of_memory_is_left_out_and_the_rest_is_written(
    place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def failing(function, sick):
        def called(*arguments, **options):
            if sick(*arguments):
                raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB")
            return function(*arguments, **options)

        return called

    def is_naslora(subject, *_) -> bool:
        return subject.variant == "naslora"

    if place == "build":
        monkeypatch.setattr(measuring, "build_subject", failing(measuring.build_subject, is_naslora))
    elif place == "sizes":
        monkeypatch.setattr(measuring, "peak_memory", failing(measuring.peak_memory, is_naslora))
    elif place == "training":
        counts = itertools.count(1)
        second_turn = failing(Contestant.step, lambda s, _: is_naslora(s) and next(counts) > 8)
        monkeypatch.setattr(Contestant, "step", second_turn)
    else:
        infer = inference._infer
        monkeypatch.setattr(
            inference, "_infer", failing(infer, lambda model, *_: any("cell" in n for n, _ in model.named_modules()))
        )

    assert cost.main(["--methods", "naslora,lora", *COMMAND[2:], "--shared", "--results", str(tmp_path)]) == 1

    (record,) = CostStore(tmp_path)
    reason = "OOM: OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
    assert record.dropped == {"naslora": reason}
    assert [method.variant for method in record.methods] == ["lora"]
    assert len(record.methods[0].inference_seconds["unmerged"]) == 1
    assert f"not measured: naslora: {reason}" in capsys.readouterr().out


def test_a_merge_that_fails_costs_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(LoRA, "merge", full)
    (method,) = measure(replace(_session("lora"), rounds=1)).methods
    assert set(method.inference_seconds) == {"unmerged"}
    assert set(method.merge_failures) == {"exact", "calibrated"}
    assert method.merge_failures["exact"] == "OOM: OutOfMemoryError: CUDA out of memory"


def test_a_session_in_which_every_method_fails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Contestant, "step", lambda *_: 1 / 0)
    with pytest.raises(UsageError, match=r"no method could be measured .lora: ERROR: ZeroDivisionError"):
        measure(_session("lora"))


def test_the_multiclass_task_is_measured_in_half_precision() -> None:
    protocol = load_protocol("demo", {**SMALL, "precision": "bf16", "mask_tokens": 3})
    session = _session("lora", task="multiclass", num_classes=4)
    record = measure(replace(session, protocol=protocol))
    assert record.comparability.options["num_classes"] == 4
    assert record.comparability.options["mask_tokens"] == 3
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
    assert "against lora[rank=2]" in out, "the default baseline is found under its options"
    assert set(record.methods[1].ratios) == {"lora[rank=2]"}
    assert "weights-cached" in out
    assert "merged-calibrated" in out
    assert "counted / closed form of the plain encoder: lora[rank=2] 1.010, decoder 1.000" in out


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
        (["--methods", "lora", "--threads", "-2"], "at least one thread"),
        (["--methods", "lora", "--classes", "-3"], "--classes -3"),
        (["--methods", "lora", "--classes", "1"], "--classes 1"),
        (["--methods", "lora", "--batch", "0"], "at least 1"),
        (["--methods", "lora", "--backbone", "vit_t", "--shared", "--results", "/proc/nope"], "cannot be written"),
        (["--methods", "lora", "--backbone", "vit_t", "--baselines", "lorra"], "did you mean 'lora'"),
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


@pytest.mark.parametrize(
    ("methods", "baselines", "found", "absent"),
    [
        ("lora[rank=2],decoder", "lora", ["lora[rank=2]"], []),
        ("lora[rank=2],lora[rank=3],decoder", "lora", ["lora[rank=3]"], []),  # rank 3 is LoRA's own
        ("lora[rank=2],lora[rank=6],decoder", "lora", ["lora[rank=2]", "lora[rank=6]"], []),
        ("lora[rank=2],lora,decoder", "lora", ["lora"], []),
        ("lora[rank=6],decoder", "lora[rank=6]", ["lora[rank=6]"], []),
        ("lora[alpha=6,rank=6]", "lora[rank=6,alpha=6],full", ["lora[alpha=6,rank=6]"], ["full"]),
        ("lora[rank=2],decoder", "lora[rank=6]", [], ["lora[rank=6]"]),
    ],
)
def test_baselines_are_found_by_name_by_options_or_by_method(
    methods: str, baselines: str, found: list[str], absent: list[str]
) -> None:
    protocol = load_protocol("demo", SMALL)
    where: dict[str, Any] = {"protocol": protocol, "overrides": {}, "backbone": "vit_t"}
    rows = []
    for word in expand(methods, []):
        method, config, variant, _ = method_row(parse_entry(word), protocol, {}, "vit_t")
        rows.append(Measured(method=method, config=config, variant=variant))
    entries = [parse_entry(word) for word in expand(baselines, [])]
    assert baselines_among(rows, entries, **where) == (found, absent)


def test_a_named_baseline_that_is_not_measured_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "measure", lambda session, report: 1 / 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cost.main([*COMMAND, "--shared", "--baselines", "full,decoder", "--results", str(tmp_path)]) == 2
    assert "no ratios to full: not among --methods" in capsys.readouterr().err


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
