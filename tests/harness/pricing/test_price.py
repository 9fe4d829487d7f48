"""A plan's price from what is on disk and in the results folder, where it would run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import pricing
from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.datasets import samples
from harness.dispatch.target import Target, target_of
from harness.models import attention_choice
from harness.planning.data import ImageCounts, limited
from harness.planning.plan import Plan
from harness.planning.request import PlannedRow, Request
from harness.planning.work import run_flops
from harness.pricing import (
    START_SECONDS,
    UPDATE_SECONDS,
    RunForecast,
    cpu,
    days,
    gpu,
    plan_text,
    price,
    published_images,
)
from harness.protocols.load import load_protocol
from harness.registry import SEGMENTED
from harness.system.machine import processor
from tests.harness.planned import found_and_planned

ON_GPU = Target(executor="inline", devices=("0",))
SECONDS = 3600.0


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return samples.write_samples("kvasir", tmp_path_factory.mktemp("data"))


def planned(results: Path, **changes: Any) -> Plan:
    """Of the paper's protocol on ``vit_b``; no benchmark is on disk unless a root is given."""
    protocol = load_protocol("nas-lora", changes.pop("overrides", None))
    request: dict[str, Any] = {
        "rows": (PlannedRow(method="lora"),), "benchmarks": ("kvasir",), "protocol": protocol, "backbones": ("vit_b",),
        "results": results, **changes,
    }  # fmt: skip
    return found_and_planned(Request(**request))


def write(
    results: Path, made: Plan, counts: dict[str, int], environment: dict[str, str] | None = None, **changes: Any
) -> None:
    """A record of the plan's first run, with ``changes`` to the run, that was made from other numbers of images."""
    run = replace(made.jobs[0].run, **changes)
    cost = {"wall_time_s": SECONDS}
    RecordStore(results).write(
        Record(run=run, key=run.key, code="OK", counts=counts, cost=cost, environment=environment or {"device": "cuda"})
    )


def test_a_benchmark_on_disk_is_priced_by_its_splits_and_another_by_the_published_sizes(data, tmp_path) -> None:
    there, elsewhere = planned(tmp_path, dataset_roots={"kvasir": data}), planned(tmp_path)
    assert (there.images, elsewhere.images) == ({"kvasir": ImageCounts(train=28, val=4, test=4)}, {})
    for made, images in ((there, there.images["kvasir"]), (elsewhere, published_images("kvasir"))):
        run = made.jobs[0].run
        images = limited(images, run.rules)
        fixed = START_SECONDS + UPDATE_SECONDS * run.rules["epochs"] * images.train / run.rules["batch_size"]
        for where, device in ((ON_GPU, gpu()), (Target(executor="inline"), cpu(1))):
            seconds = run_flops(run, images) / device.flops[1] + (START_SECONDS if where is ON_GPU else fixed)
            assert hours(price(made, tmp_path, target=where)) == pytest.approx(seconds / 3600)


def test_a_plan_counts_on_the_attention_that_this_gpu_chose_before(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(pricing, "gpu_name", lambda device: "NVIDIA H100")
    made = planned(tmp_path)
    (unknown,) = price(made, None, target=ON_GPU)
    kinds = {("NVIDIA H100", "bf16"): {"global": "math"}}
    monkeypatch.setattr(attention_choice, "remembered", lambda _, gpu, precision, **__: kinds[gpu, precision])
    (known,) = price(made, None, target=ON_GPU)
    assert known.peak_memory_bytes > 3 * unknown.peak_memory_bytes


def hours(prices: Sequence[RunForecast]) -> float:
    return sum(one.hours for one in prices)


def grid(results: Path, backbone: str, *methods: str) -> Plan:
    """Every method on the nine sets, at the paper's rules; none of them is on disk."""
    rows = tuple(PlannedRow(method=name) for name in methods)
    return planned(results, rows=rows, backbones=(backbone,), benchmarks=tuple(SEGMENTED))


@pytest.mark.parametrize(("backbone", "least", "most"), [("vit_b", 9, 12), ("vit_h", 32, 39)])
def test_the_papers_grid_of_two_methods_has_its_price_on_an_h100(backbone, least, most, tmp_path, monkeypatch) -> None:
    """11.5 and 35.6 GPU-hours a seed, by an estimate from counted operations and the rates of kernels. On a GPU nothing but the
    operations counts, as the host is faster."""
    where = target_of(cluster="gpu", cluster_overrides={"gres": "gpu:h100:1"})
    prices = price(grid(tmp_path, backbone, "lora", "naslora"), tmp_path, target=where)
    assert least <= hours(prices) <= most
    assert all("H100" in run.time_basis for run in prices)
    made = grid(tmp_path, backbone, "lora", "naslora")
    unnamed = price(made, tmp_path, target=target_of(cluster="gpu"))
    assert hours(unnamed) == hours(prices)
    assert "in hours of H100 (assumed)" in plan_text(made, unnamed, target=target_of(cluster="gpu"))
    monkeypatch.setattr(pricing, "REACHED", 2 * pricing.REACHED)
    assert hours(price(made, tmp_path, target=where)) == pytest.approx(hours(prices) / 2, rel=5e-3)
    slower = price(made, tmp_path, target=target_of(cluster="gpu", cluster_overrides={"constraint": "a100|h100"}))
    assert hours(slower) > 1.3 * hours(prices)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["NVIDIA H100 80GB HBM3"], "H100"), (["NVIDIA A10"], "A10"), (["NVIDIA A100-SXM4-40GB"], "A100"),
        (["gpu:1", "a100|h100"], "A100"), (["gpu:h100:1", "a100"], "H100"), (["gpu:1", ""], "H100 (assumed)"),
        (["gpu:1", "part4"], "H100 (assumed)"), (["gpu:1", "a1000"], "H100 (assumed)"),
        (["Tesla T4"], "T4"), (["gpu:T4:2"], "T4"), (["NVIDIA L40S"], "L40S"), (["NVIDIA L40"], "L40"),
        (["gpu:nvidia_h100_80gb_hbm3:4"], "H100"), (["NVIDIA GH200 480GB"], "GH200"), (["NVIDIA GeForce RTX 4090"], "4090"),
        (["gpu:rtx3090:1"], "3090"), (["gpu:1", "gpuA100x4"], "A100"), (["gpu:v100-sxm2-32gb:1"], "V100"),
        (["gpu:a100l:2"], "A100"), (["gpu:h100nvl:1"], "H100"), (["gpu:nvidia_h100_80gb_hbm3_7g.80gb:1"], "H100"),
        (["gpu:a100_3g.20gb:1"], "A100 MIG 3g"), (["gpu:1g.5gb:1", "a100"], "A100 MIG 1g"),
        (["NVIDIA A100-SXM4-40GB MIG 3g.20gb"], "A100 MIG 3g"),
    ],
)  # fmt: skip
def test_a_gpu_is_known_by_its_name_and_of_several_the_slowest_counts(words: list[str], name: str) -> None:
    assert gpu(*words).name == name


def test_a_mig_slice_is_slower_than_its_gpu_by_its_share() -> None:
    assert gpu("gpu:a100_3g.20gb:1").flops == pytest.approx([3 / 7 * flops for flops in gpu("gpu:a100:1").flops])


def test_records_of_this_machine_count_and_those_of_another_do_not(data: Path, tmp_path: Path) -> None:
    made = planned(tmp_path, dataset_roots={"kvasir": data}, seeds=(9,), overrides={"precision": "fp32"})
    counts = {"train": 28, "val": 4, "test": 4}
    where = Target(executor="inline", threads=2)
    here = {"device": processor(), "threads": "2"}
    for seed, environment, basis in (
        (0, {"device": "cpu B x8", "threads": "2"}, "nothing measured; at 0.09 TFLOP/s on 2 CPU cores"),
        (1, {"device": "NVIDIA H100"}, "nothing measured; at 0.09 TFLOP/s on 2 CPU cores"),
        (3, here, "nothing measured; at 0.09 TFLOP/s on 2 CPU cores"),  # zero-shot: a start, and no training
        (2, here, "1 record of the same shape"),
    ):
        method = {"method": "zeroshot", "method_config": {}} if seed == 3 else {}
        write(tmp_path, made, counts, seed=seed, environment=environment, **method)
        if method:
            (tested,) = (record for record in RecordStore(tmp_path) if record.run.method == "zeroshot")
            RecordStore(tmp_path).write(replace(tested, cost={"stage_testing_s": 9.0}))
        assert price(made, tmp_path, target=where)[0].time_basis == basis


def test_all_is_done_with_the_longest_run_or_when_the_devices_have_shared_the_work(tmp_path: Path) -> None:
    (one,) = price(planned(tmp_path), tmp_path, target=ON_GPU)
    for lengths, workers, most in (([1, 1, 1, 3], 2, 3), ([1, 1, 1, 1], 1, 4), ([], 1, 0)):
        runs = [one._replace(hours=hours) for hours in lengths]
        assert days(runs, replace(ON_GPU, workers=workers)) == most / 24


def test_shapes_of_a_cluster_wait_for_their_own_runs_only(tmp_path: Path) -> None:
    made = planned(tmp_path, backbones=("vit_b", "vit_h"), seeds=(0, 1))
    where = target_of(cluster="gpu", cluster_overrides={"parallelism": "1"})
    runs = [one._replace(hours=1.0) for one in price(made, tmp_path, target=where)]
    assert days(runs, where) == 2 / 24


def test_earlier_records_of_other_images_do_not_change_how_many_there_are(data: Path, tmp_path: Path) -> None:
    """Generated samples, a limit of the protocol, another manifest: only the speed may come from them, not the size."""
    for made in (planned(tmp_path, dataset_roots={"kvasir": data}), planned(tmp_path)):
        before = price(made, tmp_path / "nothing", target=ON_GPU)
        few = {"train": 1, "val": 1, "test": 1}
        write(tmp_path, made, few, backbone="tiny", origin="generated")
        write(tmp_path, made, few, backbone="tiny", seed=1, manifest="another")
        write(tmp_path, made, few, backbone="tiny", seed=2, rules={**made.jobs[0].run.rules, "train_limit": 1})
        assert price(made, tmp_path, target=ON_GPU) == before


def test_an_earlier_run_costs_the_time_of_its_stages_where_they_are_known(data: Path, tmp_path: Path) -> None:
    made = planned(tmp_path, dataset_roots={"kvasir": data}, seeds=(1,))
    images = made.images["kvasir"]
    counts = {"train": images.train, "val": images.val, "test": images.test}
    write(tmp_path, made, counts, seed=0)
    without_test = price(made, tmp_path, target=ON_GPU)
    assert hours(without_test) > SECONDS / 3600
    assert without_test[0].time_basis == "1 record of the same shape"
    (record,) = RecordStore(tmp_path)
    cost = {**record.cost, "stage_training_s": SECONDS, "stage_testing_s": 0.5 * SECONDS}
    RecordStore(tmp_path).write(replace(record, cost=cost))
    assert hours(price(made, tmp_path, target=ON_GPU)) == pytest.approx(1.5 * SECONDS / 3600)
    RecordStore(tmp_path).write(replace(record, cost={**cost, "gpu_hours": 12.0}))  # on eight GPUs
    assert hours(price(made, tmp_path, target=ON_GPU)) == pytest.approx(12)
