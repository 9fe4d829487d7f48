"""How fast a device was and what it held in earlier runs, the most alike first."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from harness.archive.schema import Record, Run
from harness.methods.parts.placement import BackboneShape, MethodError
from harness.models.catalog import decoder_parameters, trained_in_decoder
from harness.planning.data import Images
from harness.pricing.assumed import Device
from harness.pricing.flops import activation_bytes, decoder_of, model_of, run_flops
from harness.system.errors import UsageError

ShapeOf = Callable[[str], BackboneShape]
SecondsOf = Callable[[Record], float]


class EarlierRuns:
    """Operations a second and memory of earlier runs, looked up from the most alike to the least."""

    def __init__(
        self,
        records: Sequence[Record],
        shape_of: ShapeOf,
        device: Device,
        seconds_of: SecondsOf,
        *,
        shapes: Collection[tuple[object, ...]],
    ) -> None:
        self._device = device
        self._speeds: dict[tuple[object, ...], list[float]] = {}
        self._elsewhere: dict[tuple[object, ...], list[float]] = {}
        self._others: dict[str, None] = {}
        self._peaks: dict[tuple[object, ...], list[float]] = {}
        for record in records:
            alike = levels(record.run)
            if alike[-1] not in shapes:
                continue
            if record.cost.get("peak_memory_bytes"):
                self._peaks.setdefault(alike[0], []).append(record.cost["peak_memory_bytes"])
            images = Images(
                train=record.counts.get("train", 0),
                val=record.counts.get("val", 0),
                test=sum(count for split, count in record.counts.items() if split not in ("train", "val", "all")),
            )
            trained, whole = record.cost["wall_time_s"], seconds_of(record)
            timed = images if whole >= trained else replace(images, test=0)
            try:
                work = run_flops(record.run, shape_of(record.run.backbone), timed)
            except (UsageError, MethodError, KeyError):
                continue  # a backbone or a method that is not installed here
            if work:
                here = device.same(record)
                if not here:
                    self._others[_machine(record)] = None
                for level in alike:
                    speeds = self._speeds if here else self._elsewhere
                    speeds.setdefault(level, []).append(work / max(trained, whole))

    def seconds(self, run: Run, work: float, images: Images) -> tuple[float, str]:
        """How long ``work`` takes, and what that rests on: records of this machine, else of another, else an assumption."""
        bases = ("{} of the same shape", "{} of this method", "FLOPs at the speed of {} of this backbone")
        for speeds, where in ((self._speeds, ""), (self._elsewhere, f", made on {'; '.join(self._others)}")):
            for level, basis in zip(levels(run), bases, strict=True):
                if level in speeds:
                    seconds = work / statistics.median(speeds[level])
                    return seconds, basis.format(_records(len(speeds[level]))) + where
        precision = str(run.rules.get("precision", "fp32"))
        device, speed = self._device, self._device.flops[precision]
        basis = f"FLOPs at an assumed {speed / 1e12:g} TFLOP/s ({device.name})"
        if device.start_seconds:
            basis += f", and {device.start_seconds:g} s a run, {device.update_seconds:g} s an update"
        shown = int(run.rules.get("epoch_images", 0)) or images.train
        updates = int(run.rules.get("epochs", 1)) * math.ceil(shown / int(run.rules.get("batch_size", 1)))
        return work / speed + device.start_seconds + updates * device.update_seconds, basis

    def memory(self, run: Run, shape: BackboneShape) -> tuple[float, str]:
        known = self._peaks.get(levels(run)[0])
        if known:
            return max(known), f"{_records(len(known))} of the same shape"
        weights = 4.0 * (_encoder_parameters(shape) + _decoder(run))
        model = weights + 12.0 * trained_weights(run, shape) + activation_bytes(run, shape)
        if not self._device.process_bytes:
            return model, "closed form"
        process = f"{self._device.process_bytes / 2**30:.2f} GiB of the process, as measured once"
        return model + self._device.process_bytes, f"closed form and {process}"


def _machine(record: Record) -> str:
    """What a record was made on, in words."""
    device, threads = record.environment.get("device", "another machine"), record.environment.get("threads")
    return f"{device} with {threads} threads" if threads and device.startswith("cpu") else device


def levels(run: Run) -> tuple[tuple[object, ...], ...]:
    """From the most to the least alike."""
    rules = run.rules
    device_shape = (model_of(run), rules.get("image_size"), rules.get("precision"))
    config = tuple(sorted((name, str(value)) for name, value in run.method_config.items()))
    batch = (rules.get("batch_size"), rules.get("activation_checkpointing"))
    return (
        ("same", run.method, config, *device_shape, *batch),
        ("method", run.method, *device_shape),
        ("any", *device_shape),
    )


def trained_weights(run: Run, shape: BackboneShape) -> float:
    from harness.registry import method_config_class

    config = method_config_class(run.method)(**run.method_config)
    head = trained_in_decoder(config, run.backbone, task="binary", decoder=decoder_of(run))
    return float(config.encoder_parameters(shape)) + head


def _decoder(run: Run) -> int:
    """Of the binary task; the head of several classes is small beside it."""
    return decoder_parameters(run.backbone, task="binary", decoder=decoder_of(run))


def _encoder_parameters(shape: BackboneShape) -> float:
    blocks = sum(4 * block.dim**2 + 2 * block.dim * block.mlp_dim for block in shape.blocks)
    return float(blocks + 3 * shape.patch**2 * shape.dim)


def _records(count: int) -> str:
    return "1 record" if count == 1 else f"{count} records"
