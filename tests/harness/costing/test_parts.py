"""The instruments: live bytes, FLOPs against the closed form, paired ratios, the device's other users."""

from __future__ import annotations

import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import ttest_rel

from harness.archive.measured import MethodCost, Ratio
from harness.comparison.step_costs import paired_ratio, ratios_to
from harness.costing import device as device_module
from harness.costing.device import CLOCKS, EnergyMeter, used_by_others
from harness.costing.flops import FlopCount, encoder_forward_flops
from harness.costing.measure import LiveBytes
from harness.costing.session import RandomImages
from harness.models.build import build_segmenter
from harness.report import costs
from harness.report.formats import text_of
from harness.system.errors import UsageError

CPU = torch.device("cpu")


def test_live_bytes_follow_creation_views_and_freeing() -> None:
    known = torch.zeros(1000)
    with LiveBytes([known]) as counter:
        first = known + 1
        view = first.view(10, 100).t()
        assert counter.now == 4000
        second = first * 2
        assert counter.now == 8000
        del first
        assert counter.now == 8000, "the view keeps it alive"
        del view
        assert counter.now == 4000
        known.add_(1)
        assert counter.now == 4000, "in place, and known before"
        del second
    assert (counter.now, counter.peak) == (0, 8000)


def test_live_bytes_see_what_backward_needs() -> None:
    weight = torch.randn(64, 64, requires_grad=True)
    x = torch.randn(32, 64)
    with LiveBytes([weight, x]) as counter:
        out = (x @ weight).exp()
        kept = counter.now
        loss = out.sum()
        del out
        assert counter.now >= 32 * 64 * 4, "exp keeps its output for backward"
        loss.backward()
        del loss
    assert kept == 32 * 64 * 4
    assert weight.grad is not None
    assert counter.now == weight.grad.numel() * 4
    assert counter.peak > kept


@pytest.mark.parametrize("name", ["tiny", "tiny_timm", "tiny_sam2"])
@pytest.mark.parametrize("fused", [True, False])
def test_counted_flops_equal_the_closed_form(name: str, fused: bool) -> None:
    segmenter = build_segmenter(name, task="binary", fused_attention=fused)
    shape = segmenter.encoder.shape
    images = torch.zeros(2, 3, shape.image_size, shape.image_size)
    with torch.no_grad(), FlopCount() as count:
        segmenter.encode(images)
    assert count.total == 2 * encoder_forward_flops(shape, image_size=shape.image_size)
    assert count.not_counted["aten.native_layer_norm"] > 0
    assert "aten.view" not in count.not_counted
    assert not {"aten.mm", "aten.bmm", "aten.addmm", "aten.convolution"} & count.not_counted.keys()


def test_paired_ratios_cancel_what_slows_a_round_and_have_the_interval_of_a_paired_t_test_on_logarithms() -> None:
    slow = [1.0, 5.0, 2.0, 9.0, 3.0]
    ratio = paired_ratio([0.8 * value for value in slow], slow)
    assert [ratio.value, ratio.low, ratio.high] == pytest.approx([0.8] * 3)
    assert paired_ratio([2.0], [1.0]).low is None
    values, base = [1.1, 1.3, 0.9, 1.2], [1.0, 1.1, 1.0, 1.05]
    interval = ttest_rel(np.log(values), np.log(base)).confidence_interval(0.95)
    ratio = paired_ratio(values, base)
    assert (ratio.low, ratio.high) == pytest.approx((math.exp(interval.low), math.exp(interval.high)))


def test_a_ratio_is_told_as_a_change_in_percent_with_its_interval() -> None:
    assert text_of(costs._change(Ratio(value=0.7586, low=0.75, high=0.768))) == "-24.1 [-25.0, -23.2]"
    assert text_of(costs._change(Ratio(value=1.5))) == "+50.0"


def test_noise_has_the_shape_of_masks_or_of_labels() -> None:
    masks, labels = (RandomImages(2, image_size=16, num_classes=3, labels=labels) for labels in (False, True))
    mask = masks.mask_input(1)
    assert (mask.shape, labels.mask_input(1).shape) == ((16, 16), (1, 1))
    assert (mask.dtype, mask.tolist()) == (np.uint8, np.kron(mask[::2, ::2], np.ones((2, 2), dtype=int)).tolist())


def test_a_whole_training_on_fewer_images_takes_fewer_device_hours() -> None:
    def cost(variant: str, seconds: float) -> MethodCost:
        return MethodCost(
            method=variant, variant=variant, config={}, seconds={}, shares={}, step_seconds={"total": [seconds] * 3},
            memory_bytes={"allocated": 1}, flops={"forward": 1.0, "backward": 1.0}, not_counted={}, parameters={},
        )  # fmt: skip

    searched = ratios_to(cost("naslora", 3.0), cost("full", 2.0), longer=0.8)
    assert searched["time"].value == pytest.approx(1.5)
    hours = searched["device_hours"]
    assert (hours.low, hours.value, hours.high) == tuple(pytest.approx(1.2) for _ in range(3))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_busy_cpu_is_noticed() -> None:
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        assert "other processes use" in used_by_others(CPU, seconds=0.5)
    finally:
        busy.kill()
        busy.wait()


def test_what_this_process_computes_itself_is_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    busy, own = iter([100.0, 103.0]), iter([10.0, 12.0])
    monkeypatch.setattr(device_module, "_busy_seconds", lambda: next(busy))
    monkeypatch.setattr(device_module, "time", SimpleNamespace(process_time=lambda: next(own), sleep=lambda _: None))
    assert used_by_others(CPU, seconds=1.0).startswith("other processes use 1.0 of ")


def test_processes_on_a_gpu_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    for pids, said in (([], ""), ([5, 6], "2 other processes are on the GPU (5, 6)")):
        meter = SimpleNamespace(other_processes=lambda pids=pids: pids)
        monkeypatch.setattr(EnergyMeter, "open", lambda device, meter=meter: meter)
        assert used_by_others(torch.device("cuda:0")) == said


def test_the_processor_clock_is_for_one_thread_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for threads, device in ((2, "cpu"), (1, "cuda:0")):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        with pytest.raises(UsageError, match="--threads 1"):
            CLOCKS["processor"](torch.device(device))
    assert CLOCKS["processor"](CPU)() > 0


def test_energy_and_other_processes_come_from_nvml() -> None:
    import pynvml  # which comes with the harness

    nvml = SimpleNamespace(
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: 12_500,
        nvmlDeviceGetComputeRunningProcesses=lambda handle: [SimpleNamespace(pid=1), SimpleNamespace(pid=2)],
    )
    assert all(callable(getattr(pynvml, name)) for name in vars(nvml))
    meter = EnergyMeter(nvml, handle=object())
    assert meter.joules() == 12.5
    assert meter.other_processes() == [1, 2]
    assert EnergyMeter.open(CPU) is None


def test_a_gpu_whose_energy_cannot_be_read_gets_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: object) -> int:
        raise RuntimeError("Not Supported")

    begun: list[str] = []
    nvml = SimpleNamespace(
        nvmlInit=lambda: begun.append("init"),
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=refuse,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="7"))
    said: list[str] = []
    assert EnergyMeter.open(torch.device("cuda:0"), report=said.append) is None
    assert said == ["energy is not measured: RuntimeError: Not Supported"]
    assert begun == ["init"]
    assert EnergyMeter.open(CPU, report=said.append) is None
    assert len(said) == 1
