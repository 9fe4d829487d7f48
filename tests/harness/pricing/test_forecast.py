"""A plan's price: from records where there are some, from FLOPs where there are none, and it says which."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from harness.archive.schema import Record, Run
from harness.methods.configs.lowrank import LoRAConfig
from harness.models.catalog import backbone_shape, decoder_parameters
from harness.planning.data import Images
from harness.pricing.flops import (
    activation_bytes,
    decoder_flops,
    encoder_flops,
    forward_flops,
    model_of,
    run_flops,
    step_flops,
)
from harness.pricing.forecast import (
    GPU,
    PROCESS_BYTES,
    START_SECONDS,
    UPDATE_SECONDS,
    Forecast,
    _makespan,
    cpu,
    forecast,
    kept_blocks,
    published_images,
    within_budget,
)
from harness.pricing.price import forecast_text
from harness.system.errors import UsageError
from tests.harness.report.sample import record
from tests.values import REPOSITORY

RULES = {"image_size": 128, "precision": "fp32", "batch_size": 4, "epochs": 10, "select_every": 1, "merge": []}
IMAGES = Images(train=100, val=10, test=20)


def made(seconds: float = 100.0, **changes: Any) -> Record:
    counts = {"train": 100, "val": 10, "test": 20}
    cost = {"wall_time_s": seconds, "peak_memory_bytes": 5e8}
    rules = {**RULES, **changes.pop("rules", {})}
    return record(rules=rules, counts=counts, cost=cost, **{"environment": {"device": "cpu"}, **changes})


def price(runs: list[Run], records: list[Record], **options: Any) -> Forecast:
    """By default every record's ``wall_time_s`` is all of its time."""
    defaults = {"device": cpu(2), "seconds_of": lambda record: record.cost["wall_time_s"]}
    return forecast(runs, records, images_of=lambda run: IMAGES, **{**defaults, **options})


def only(prices: Forecast) -> Any:
    """The price of a plan's only run."""
    (run,) = prices.runs
    return run


def test_a_run_like_earlier_ones_costs_the_median_of_those_that_did_not_fail() -> None:
    earlier = made()
    cost = only(price([replace(earlier.run, seed=5)], [earlier]))
    assert cost.hours == pytest.approx(100 / 3600)
    assert cost.peak_memory_bytes == 5e8
    assert cost.time_basis == cost.memory_basis == "1 record of the same shape"
    several = [made(100, seed=0), made(110, seed=1), made(900, seed=2), made(1, seed=3, code="OOM")]
    assert price([replace(earlier.run, seed=9)], several).hours == pytest.approx(110 / 3600)


def test_time_scales_with_the_work_of_the_run_and_limits_of_the_protocol_count() -> None:
    longer = made(rules={"epochs": 20}).run
    cost = only(price([longer], [made()]))
    shape = backbone_shape("tiny")
    assert cost.hours * 36 == pytest.approx(run_flops(longer, shape, IMAGES) / run_flops(made().run, shape, IMAGES))
    assert 1.9 < cost.hours * 36 < 2.0
    limited = made(rules={"train_limit": 10}).run
    assert price([limited], [made()]).hours < 0.2 * price([made().run], [made()]).hours


def test_without_a_record_of_this_kind_of_device_the_speed_is_assumed_and_said_so() -> None:
    elsewhere = [made(environment={"device": "NVIDIA H100"})]
    cost = only(price([made().run], elsewhere))
    assert cost.time_basis == "FLOPs at an assumed 0.09 TFLOP/s (2 CPU cores), and 4.4 s a run, 0.03 s an update"
    assert cost.memory_basis == "closed form and 0.44 GiB of the process, as measured once"
    assert only(price([made().run], elsewhere, device=GPU)).time_basis == "1 record of the same shape"
    other = only(price([made(method="decoder").run], [made()]))
    assert other.time_basis == "FLOPs at the speed of 1 record of this backbone"


def test_records_of_this_machine_count_before_those_of_another_whatever_they_share() -> None:
    here, threads = {"device": "cpu A x2", "threads": "2"}, {"device": "cpu A x2", "threads": "1"}
    other = {"device": "cpu B x8", "threads": "2"}
    alike = [made(15, environment=other), made(15, seed=1, environment=threads)]
    for records, seconds, basis in (
        (alike, 15, "2 records of the same shape, made on cpu B x8 with 2 threads; cpu A x2 with 1 threads"),
        (
            [*alike, made(99, method="decoder", environment=here)],
            None,
            "FLOPs at the speed of 1 record of this backbone",
        ),
        ([*alike, made(99, seed=2, environment=here)], 99, "1 record of the same shape"),
    ):
        cost = only(price([made().run], records, device=replace(cpu(2), model="cpu A x2")))
        assert cost.time_basis == basis
        assert seconds is None or cost.hours == pytest.approx(seconds / 3600)


def test_an_assumed_price_counts_starts_and_updates_besides_operations() -> None:
    run = made().run
    (cost,) = price([run], [], device=cpu(1)).runs
    work = run_flops(run, backbone_shape("tiny"), IMAGES)
    assert 3600 * cost.hours == pytest.approx(work / 4.5e10 + START_SECONDS + 10 * 25 * UPDATE_SECONDS)


def test_closed_form_memory_counts_the_process_on_a_cpu_and_not_on_a_gpu() -> None:
    costs = [price([made().run], [], device=device).runs[0] for device in (cpu(1), GPU)]
    assert costs[0].peak_memory_bytes - costs[1].peak_memory_bytes == PROCESS_BYTES
    assert costs[1].memory_basis == "closed form"


def test_a_trained_weight_takes_its_gradient_and_adams_two_moments() -> None:
    shape, runs = backbone_shape("tiny"), [made(config={"rank": rank}).run for rank in (4, 8)]
    four, eight = (cost.peak_memory_bytes for cost in price(runs, [], device=GPU).runs)
    more = LoRAConfig(rank=8).encoder_parameters(shape) - LoRAConfig(rank=4).encoder_parameters(shape)
    assert eight - four == 3 * 4 * more > 0


def test_every_merged_model_is_tested_once_more() -> None:
    shape = backbone_shape("tiny")
    none, two = (made(rules={"merge": modes}).run for modes in ([], ["exact", "calibrated"]))
    more = run_flops(two, shape, IMAGES) - run_flops(none, shape, IMAGES)
    assert more == pytest.approx(2 * IMAGES.test * forward_flops(two, shape))


def test_a_record_whose_clock_stops_with_training_says_nothing_of_the_test() -> None:
    earlier = made()
    shape = backbone_shape("tiny")
    work = run_flops(earlier.run, shape, IMAGES) / run_flops(earlier.run, shape, replace(IMAGES, test=0))
    assert work > 1.01
    assert price([earlier.run], [earlier], seconds_of=lambda record: 0.0).hours == pytest.approx(work * 100 / 3600)
    assert price([earlier.run], [earlier], seconds_of=lambda record: 150.0).hours == pytest.approx(150 / 3600)
    assert price([earlier.run], [earlier], seconds_of=lambda record: 3.0).hours == pytest.approx(work * 100 / 3600)


def test_disk_is_that_of_an_interrupted_run_and_less_stays() -> None:
    run = made(method="decoder").run
    states = 4 * decoder_parameters("tiny", task="binary")
    rows = 40_000 + 150 * (IMAGES.val + 2 * IMAGES.test)
    cost = price([run], []).runs[0]
    assert (cost.disk_bytes, cost.kept_bytes) == (7 * states + rows, 2 * states + rows)
    merged = price([replace(run, rules={**run.rules, "merge": ["exact"]})], []).runs[0]
    assert merged.kept_bytes - cost.kept_bytes == 150 * IMAGES.test


def test_quantised_blocks_take_less_memory() -> None:
    """4 bits and an fp32 scale in 64, or 8 bits, for 32 of the 84,934,656 weights in ViT-B's linear layers."""
    whole, *fewer = (
        price([made(backbone="vit_b", rules={"quantise": kind}).run], [], device=GPU).runs[0].peak_memory_bytes
        for kind in ("", "nf4", "int8")
    )
    assert [whole - less for less in fewer] == [84_934_656 * (4 - 0.5 - 4 / 64), 84_934_656 * 3]


def test_tokens_are_kept_behind_blocks_that_nothing_reaches_unless_positions_rotate() -> None:
    shape, config = backbone_shape("vit_b"), LoRAConfig(blocks="last-half")
    stem = backbone_shape("mobile_sam").stem
    for change, kept in (({}, 6), ({"learnt_positions": 0}, None), ({"pre_norm": True}, None)):
        assert kept_blocks(config, replace(shape, **change)) == kept
        assert kept_blocks(config, replace(shape, stem=stem, **change)) == 6
    assert kept_blocks(LoRAConfig(), shape) is None


def test_activations_are_of_the_blocks_behind_the_first_trained_one_of_the_masks_and_of_the_upscaling() -> None:
    """``tiny``: 4 blocks of 64 tokens with 64 channels; 22 bytes at 16 bit each, 32 where weights train; fp32 is twice that."""
    shape, token = backbone_shape("tiny"), 64 * 64 * 2
    kept = {
        name: activation_bytes(made(method=name, config=options, rules={"batch_size": 1}).run, shape)
        for name, options in (("decoder", {}), ("lora", {"rank": 4}), ("full", {}))
    }
    masks, upscaled = 8 * 4 * 128**2, 2 * 64 * 16 * 32 * 8 * 2
    assert kept["decoder"] == 22 * token + masks + upscaled
    assert kept["lora"] - kept["decoder"] == 3 * 22 * token
    assert kept["full"] - kept["lora"] == 4 * 10 * token


def test_caches_are_counted_once_for_all_runs_that_share_them() -> None:
    rules = {"cache_images": True, "cache_embeddings": True}
    runs = [made(seed=seed, method=method, rules=rules).run for seed in range(2) for method in ("lora", "decoder")]
    prices = price([replace(run, checkpoint="abc") for run in runs], [])
    assert prices.image_cache_bytes == 130 * 4 * 128**2
    assert prices.embedding_cache_bytes == 2 * 100 * 64 * 8 * 8 * 4
    assert price(runs, []).embedding_cache_bytes == 2 * prices.embedding_cache_bytes  # each seed its own random encoder
    assert "caches come on top, shared by runs, where there is room: images 0.01 GiB" in forecast_text(prices)
    assert price([made().run], []).image_cache_bytes == 0
    assert "caches" not in forecast_text(price([made().run], []))


def test_finish_date_counts_how_many_run_at_once() -> None:
    earlier = made(3600)
    runs = [replace(earlier.run, seed=seed) for seed in range(1, 5)]
    start = datetime(2026, 1, 1)
    assert price(runs, [earlier], start=start).finish == datetime(2026, 1, 1, 4)
    assert price(runs, [earlier], start=start, parallel=3).finish == datetime(2026, 1, 1, 2)
    assert price(runs, [earlier], start=start, devices_of=lambda run: 4).finish == datetime(2026, 1, 1, 1)
    assert price(runs, [earlier]).finish is None
    assert price(runs, [earlier]).parallel == 1
    assert _makespan([1, 1, 1, 3], 2) == 3  # the longest first


def test_a_budget_buys_whole_comparisons_before_halves() -> None:
    earlier, names = [made(3600, method=method) for method in ("lora", "decoder")], ("kvasir", "leaf")
    grid = itertools.product(names, earlier, range(2))
    prices = price([replace(like.run, seed=seed, benchmark=name) for name, like, seed in grid], earlier)
    assert prices.hours == pytest.approx(8)
    bought = [(cost.run.benchmark, cost.run.method, cost.run.seed) for cost in within_budget(prices, 5)]
    assert bought == [(name, method, 0) for name in names for method in ("lora", "decoder")]
    assert len(within_budget(prices, 1.5)) == 1
    assert within_budget(prices, 0.5) == ()
    with pytest.raises(UsageError, match="above zero"):
        within_budget(prices, 0)


def test_a_budget_buys_cheap_benchmarks_before_dear_ones_and_low_seeds_of_those_before_high_ones() -> None:
    dear, cheap = (made(benchmark=name, rules={"epochs": epochs}) for name, epochs in (("kvasir", 40), ("leaf", 10)))
    prices = price([replace(like.run, seed=seed) for like in (dear, cheap) for seed in (1, 2)], [dear, cheap])
    hours = {(cost.run.benchmark, cost.run.seed): cost.hours for cost in prices.runs}
    assert hours["kvasir", 1] > 2 * hours["leaf", 1]
    for budget, bought in (
        (hours["leaf", 1], {("leaf", 1)}),
        (hours["kvasir", 1] + hours["leaf", 1], {("kvasir", 1), ("leaf", 1)}),
    ):
        assert {(cost.run.benchmark, cost.run.seed) for cost in within_budget(prices, 1.01 * budget)} == bought


def test_a_mixture_is_tested_once_more_as_the_operation_that_it_chose() -> None:
    shape = backbone_shape("tiny")
    once, twice = (
        run_flops(made(method="naslora", config={"operations": names}).run, shape, IMAGES)
        - run_flops(made(method="naslora", config={"operations": names}).run, shape, replace(IMAGES, test=0))
        for names in ("skip_connect", "skip_connect,sep_conv_3x3")
    )
    assert twice == pytest.approx(1.5 * once)


def test_the_peak_is_that_of_the_run_that_needs_most() -> None:
    prices = price([made(seed=seed, method=method).run for method in ("lora", "decoder") for seed in range(2)], [])
    peaks = [replace(run, peak_memory_bytes=gib * 2.0**30) for run, gib in zip(prices.runs, (1, 2, 4, 3), strict=True)]
    head, *lines = forecast_text(replace(prices, runs=tuple(peaks))).splitlines()
    until = head.index("peak GiB") + len("peak GiB")
    assert [line[:until].split()[-1] for line in lines[:3]] == ["2.00", "4.00", "4.00"]


def test_the_description_has_a_line_a_method_and_a_sum() -> None:
    runs = [made(seed=seed, method=method).run for method in ("lora", "decoder") for seed in range(2)]
    text = forecast_text(price(runs, [made()], start=datetime(2026, 1, 1)))
    assert text == forecast_text(price(runs, [made()], start=datetime(2026, 1, 1)))
    begins = ["method", "lora", "decoder", "all", "time", "time", "memory", "memory", "hours", "disk", "finished"]
    assert [line.split()[0] for line in text.splitlines()] == begins
    assert max(map(len, text.splitlines()[:4])) <= 80
    assert "(1 run at a time" in text
    assert "2 records" not in text
    assert "\ntime of lora · tiny: 1 record of the same shape\n" in text


@pytest.mark.parametrize("name", ["vit_b", "vit_h"])
def test_closed_form_flops_are_those_of_segment_anythings_encoder(name: str) -> None:
    """Counted operation by operation on the meta device; what is left out (relative positions) is under a percent."""
    import torch
    from segment_anything import sam_model_registry
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        encoder = sam_model_registry[name]().image_encoder
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(torch.empty(1, 3, 1024, 1024, device="meta"))
    ours = sum(encoder_flops(backbone_shape(name), image_size=1024))
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.parametrize("method", ["lora", "decoder", "full"])
def test_gradient_that_stops_early_costs_less(method: str) -> None:
    shape = backbone_shape("vit_b")
    run = made(method=method, rules={"image_size": 1024}).run
    ratio = step_flops(run, shape) / forward_flops(run, shape)
    low, high = {"lora": (1.9, 2.1), "decoder": (1.0, 1.1), "full": (2.9, 3.0)}[method]
    assert low <= ratio <= high
    if method == "lora":
        half = made(config={"blocks": "last-half"}, rules={"image_size": 1024}).run
        assert 0.7 < step_flops(half, shape) / step_flops(run, shape) < 0.8


def test_published_sizes_stand_in_for_data_that_is_not_there() -> None:
    assert published_images("isic2017") == Images(train=2000, val=150, test=600)
    assert published_images("kvasir") == Images(train=810, val=90, test=100)


def test_a_thousand_runs_are_priced_in_a_moment_and_without_torch() -> None:
    script = (
        "import sys, time\n"
        "from dataclasses import replace\n"
        "from tests.harness.pricing.test_forecast import made, price\n"
        "runs = [replace(made().run, seed=seed) for seed in range(1000)]\n"
        "records = [made(seed=seed) for seed in range(1000)]\n"
        "start = time.process_time()\n"
        "price(runs, records)\n"
        "print(time.process_time() - start, 'torch' in sys.modules)\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    seconds, torch = done.stdout.split()
    assert torch == "False"
    assert float(seconds) < 1, seconds


@pytest.mark.parametrize("name", ["tiny", "tiny_sam2"])
def test_closed_form_flops_of_sams_decoders_are_those_of_their_layers_that_read_the_image(name: str) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from harness.models.build import build_segmenter

    segmenter = build_segmenter(name, task="binary", fused_attention=False).eval()
    with torch.no_grad():
        encoded = segmenter.encode(torch.zeros(1, 3, 128, 128))
        with FlopCounterMode(display=False) as counter:
            segmenter.decode(encoded)
    of_image = (
        "token_to_image.k_proj", "token_to_image.v_proj", "image_to_token.q_proj", "image_to_token.out_proj",
        "output_upscaling.0", "output_upscaling.3", "conv_s0", "conv_s1",
    )  # fmt: skip
    counted = (sum(counts.values()) for part, counts in counter.get_flop_counts().items() if part.endswith(of_image))
    assert decoder_flops(backbone_shape(name), image_size=128) == sum(counted)


@pytest.mark.parametrize("decoder", ["mask-transformer", "mask2former"])
def test_closed_form_flops_of_other_decoders_are_those_that_are_counted(decoder: Any) -> None:
    """What is left out: class tokens and deformable sampling."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from harness.models.build import build_segmenter

    if decoder == "mask2former":
        pytest.importorskip("transformers")
    name = "timm/vit_small_patch14_dinov2"
    segmenter = build_segmenter(name, task="binary", decoder=decoder, image_size=196, fused_attention=False).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        segmenter.decode(torch.zeros(1, 384, 14, 14))
    ours = decoder_flops(backbone_shape(name, 196), image_size=196, decoder=decoder)
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_a_decoder_changes_the_price_of_a_run() -> None:
    shape = backbone_shape("timm/vit_base_patch16_224", 224)
    runs = {
        name: made(backbone="timm/vit_base_patch16_224", rules={"image_size": 224, "decoder": name}).run
        for name in ("sam", "linear", "mask-transformer", "mask2former")
    }
    work = {name: forward_flops(run, shape) for name, run in runs.items()}
    encoder = sum(encoder_flops(shape, image_size=224, decoder="linear"))
    assert work["linear"] == encoder < work["sam"] < work["mask2former"]
    assert work["mask-transformer"] - work["linear"] == pytest.approx(2 * 196 * 26 * 768**2 + 2 * 4 * 196**2 * 768)
    memory = {name: activation_bytes(run, shape) for name, run in runs.items()}
    assert memory["linear"] < memory["mask-transformer"] < memory["mask2former"]
    assert {model_of(run) for run in runs.values()} >= {
        "timm/vit_base_patch16_224",
        "timm/vit_base_patch16_224 + linear",
    }
