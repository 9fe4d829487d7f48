"""The first minutes on a GPU: what it is, whether every method takes a correct step on it, which attention is fast, and how fast it is fed.

Each method takes one step on the tiny SAM in fp32, bf16 and fp16, from the same trained state. The same step on the CPU in fp32 is the
reference. Rates are those of LoRA's training step on a backbone at its own size, of scoring, and of decoding and resizing photographs.
"""

from __future__ import annotations

import operator
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from harness.contract.case import SEED, ContractCase
from harness.datasets.base import Sample
from harness.datasets.readers.decoding import read_image
from harness.evaluation.evaluate import evaluate_split
from harness.evaluation.scorer import SplitScorer
from harness.methods.base import Method
from harness.methods.parts.placement import BackboneShape
from harness.models.attention import KERNELS
from harness.models.attention_choice import apply_choice, choose
from harness.models.build import build_segmenter
from harness.models.catalog import backbone as known
from harness.models.catalog import backbone_shape
from harness.models.decoders import Decoder, Task
from harness.models.device import autocast, compute_on
from harness.models.segmenter import probabilities
from harness.protocols.protocol import Protocol
from harness.registry import METHODS, method_config
from harness.system.errors import UsageError
from harness.system.machine import cores, gpu_driver
from harness.training.feeding import Batch, normalise
from harness.training.images import to_input
from harness.training.step import TrainingStep

LIMITS = {"fp32": (1e-4, 1e-3), "bf16": (0.02, 0.1), "fp16": (0.002, 0.01)}
"""Largest relative deviations from the CPU in fp32: of a loss, and of all gradients together, by their norm. On a CPU the built-in
methods' gradients deviate by up to 0.023 in bf16 and 0.0007 in fp16."""
ATTENTION_LIMIT = 0.05
"""Largest relative deviation of attention in bf16, output and gradients, from plain attention in fp32. Plain attention: 0.017 on a CPU."""
BATCH, SCORED = 4, 32
PHOTOGRAPHS, PHOTOGRAPH = 32, (1500, 1000)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Measurements of a method in a precision, or of an attention kernel in a kind of block.

    Args:
        name, where: the method and its precision, or the attention kernel and the kind of block.
        deviations: relative, with their ``limits``: of loss and gradients (of masks where nothing trains) from the CPU's in fp32, or
            the largest deviation of attention from plain attention in fp32.
        milliseconds: for attention, forward and backward, one image in bf16.
        failed: why there are no numbers; empty otherwise.
    """

    name: str
    where: str
    deviations: tuple[float, ...] = ()
    limits: tuple[float, ...] = ()
    milliseconds: float = 0.0
    failed: str = ""

    @property
    def text(self) -> str:
        return self.failed or " / ".join(f"{value:.1e}" for value in self.deviations)

    @property
    def right(self) -> bool:
        return not self.failed and all(map(operator.le, self.deviations, self.limits))


def _finding(
    name: str, where: str, limits: tuple[float, ...], measure: Callable[[], tuple[tuple[float, ...], float]]
) -> Finding:
    """The finding from ``measure``, which returns deviations and milliseconds. A plug-in may raise anything, and a kernel may be missing
    or run out of memory; the others are examined all the same."""
    try:
        deviations, milliseconds = measure()
    except Exception as error:
        return Finding(name=name, where=where, failed=_reason(error))
    return Finding(name=name, where=where, deviations=deviations, limits=limits, milliseconds=milliseconds)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def examine_gpu(*, backbone: str, methods: Sequence[str], report: Callable[[str], None]) -> dict[str, Any]:
    """Run everything in this module on the first GPU. The result has plain values for a JSON file.

    Returns:
        ``backbone``, ``device`` (`facts`), ``steps`` and ``attention`` (each a list of `Finding`), ``rates`` (empty where they failed).
        ``failures`` has a line for each thing that is not right.

    Raises:
        UsageError: there is no GPU.
    """
    device, steps = require_gpu(), list[Finding]()
    for number, name in enumerate(methods, start=1):
        report(f"a step of {name} ({number}/{len(methods)})")
        steps += steps_of(name, device)
    report("attention")
    ways, about = attentions(backbone_shape(backbone), device), facts(device)
    report(f"rates of {backbone}")
    measured, failures = dict[str, float](), [f"{f.name}, {f.where}: {f.text}" for f in (*steps, *ways) if not f.right]
    try:
        measured = rates(backbone, device)
    except Exception as error:  # out of memory, for example; what was found before is still worth sending
        failures.append(f"rates: {_reason(error)}")
    return {
        "backbone": backbone,
        "device": about,
        "steps": [asdict(step) for step in steps],
        "attention": [asdict(way) for way in ways],
        "rates": measured,
        "failures": failures,
    }


def require_gpu() -> torch.device:
    """The first GPU, set up for runs. Raises UsageError: torch finds none; the message says how to get one."""
    if torch.cuda.is_available():
        return compute_on(torch.device("cuda", 0))
    cuda = torch.version.cuda
    built = f"is built for CUDA {cuda} and finds no GPU" if cuda else "is built without CUDA"
    raise UsageError(
        f"torch {torch.__version__} {built}; run this where there is a GPU (srun --gpus 1 sam-peft doctor --device cuda), with a torch for "
        "its CUDA (pytorch.org/get-started)"
    )


def facts(device: torch.device) -> dict[str, Any]:
    """The device and its software."""
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": torch.cuda.get_device_name(device),
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "capability": f"{properties.major}.{properties.minor}",
        "driver": gpu_driver(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "cudnn": torch.backends.cudnn.version() or "none",
        "bf16": torch.cuda.is_bf16_supported(),
        "cores": cores(),
    }


def steps_of(name: str, device: torch.device, *, backbone: str = "tiny", decoder: Decoder = "sam") -> list[Finding]:
    """What a step of a method shows, in every precision."""
    try:
        method = METHODS.get(METHODS.resolve(name))
        case = ContractCase(method=method, config=method_config(name, {}), backbone=backbone, decoder=decoder)
        loss, gradient = _step(case, torch.device("cpu"), "fp32")
    except Exception as error:
        return [Finding(name=name, where="fp32", failed=f"on the CPU: {_reason(error)}")]

    def deviations(precision: str) -> tuple[tuple[float, ...], float]:
        value, values = _step(case, device, precision)
        return (abs(value - loss) / max(abs(loss), 1e-12), _relative(values, gradient)), 0.0

    return [_finding(name, kind, limits, lambda kind=kind: deviations(kind)) for kind, limits in LIMITS.items()]  # type: ignore[misc]


def _step(case: ContractCase, device: torch.device, precision: str) -> tuple[float, Tensor]:
    """Run every kind of pass that the method's training has on a trained copy, then an update. Returns the sum of the losses, and all
    gradients in one float64 vector on the CPU (where nothing trains, the masks and their norm)."""
    segmenter, method = case.trained()
    segmenter.zero_grad()
    segmenter.to(device).train()
    method.generator.manual_seed(SEED)
    torch.manual_seed(SEED)
    rules = Protocol(name="doctor", precision=precision, lr=1e-3, decoder=case.decoder)  # type: ignore[arg-type]
    if not method.config.trains:
        with torch.no_grad(), autocast(rules.precision, device):
            masks = segmenter(case.images.to(device)).masks.float().cpu().double().flatten()
            return float(masks.norm()), masks
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16", init_scale=2.0**8)
    training = replace(_training(method, rules, device, labels=case.labels), scaler=scaler)
    batch, loss, gradients = _batch(case.images.to(device), case.targets.to(device)), 0.0, list[Tensor]()
    if case.labels:
        batch = batch._replace(targets=batch.targets[:, :1, :1])
    for roles in dict.fromkeys(
        roles for epoch in range(rules.epochs) for step in (0, 1) for roles in training.passes(epoch=epoch, step=step)
    ):
        loss += float(training.gradients(roles, [batch], predict=_predictor(segmenter, rules)))
        factor = scaler.get_scale() if scaler.is_enabled() else 1.0
        found = [parameter.grad for parameter in training.parameters(roles)]
        gradients += [gradient.cpu().double().flatten() / factor for gradient in found if gradient is not None]
    training.update(training.optimisers)
    if not all(bool(p.isfinite().all()) for p in segmenter.parameters() if p.requires_grad):
        raise ArithmeticError("the update leaves parameters that are not finite")
    return loss, torch.cat(gradients)


def _training(method: Method, rules: Protocol, device: torch.device, *, labels: bool = False) -> TrainingStep:
    task: Task = "classification" if labels else "binary"
    return TrainingStep.of(method, rules, task=task, num_classes=2, device=device)


def _batch(images: Tensor, targets: Tensor) -> Batch:
    """``images``: (B, 3, S, S), normalised; ``targets``: (B, 1, h, w) of zeros and ones."""
    masks = nn.functional.interpolate(targets, size=images.shape[-2:])[:, 0].byte()
    return Batch(entries=[], images=images, targets=masks)


def _predictor(segmenter: nn.Module, rules: Protocol) -> Callable[[Batch], Any]:
    def predict(batch: Batch) -> Any:
        with autocast(rules.precision, batch.targets.device):
            return segmenter(batch.images)

    return predict


def _relative(x: Tensor, reference: Tensor) -> float:
    return float((x - reference).norm() / reference.norm().clamp(min=1e-30))


def attentions(shape: BackboneShape, device: torch.device) -> list[Finding]:
    """Every attention kernel in a global block and in a window, where the backbone has relative positions by axes."""
    if shape.relative_positions != "axes":
        return []
    block, side = shape.blocks[0], shape.image_size // shape.patch
    window = max(block.window for block in shape.blocks)
    kinds = {"global": (1, side), **({"window": ((-(-side // window)) ** 2, window)} if window else {})}
    findings = []
    for kind, (maps, width) in kinds.items():
        generator, dim = torch.Generator().manual_seed(SEED), block.dim // block.heads
        sizes = [dim, dim, dim, width, width]
        inputs = [torch.randn(maps, block.heads, width * width, size, generator=generator).to(device) for size in sizes]
        exact = _attended("math", inputs)

        def measure(name: str, inputs: list[Tensor] = inputs, exact: list[Tensor] = exact) -> Any:
            half = [x.to(torch.bfloat16) for x in inputs]
            off = max(_relative(x.float(), y) for x, y in zip(_attended(name, half), exact, strict=True))
            return (off,), 1000 * _seconds(lambda: _attended(name, half), device)

        findings += [_finding(name, kind, (ATTENTION_LIMIT,), lambda name=name: measure(name)) for name in KERNELS]  # type: ignore[misc]
    return findings


def _attended(name: str, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The output, and the gradients of its sum of squares."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = KERNELS[name](*leaves, scale=leaves[0].shape[-1] ** -0.5)
    out.float().square().sum().backward()
    return [out.detach(), *(x.grad for x in leaves if x.grad is not None)]


def _seconds(work: Callable[[], object], device: torch.device, *, times: int = 5) -> float:
    """The median duration of several calls, after one that is not counted."""
    taken = []
    for _ in range(times + 1):
        torch.cuda.synchronize(device)
        begun = time.perf_counter()
        work()
        torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - begun)
    return sorted(taken[1:])[times // 2]


def rates(backbone: str, device: torch.device) -> dict[str, float]:
    """Images per second: in LoRA's training step, in forward passes alone, in scoring with nothing to decode, and in decoding and resizing
    JPEGs on all cores; and the step's peak memory in GiB."""
    shape, (mean, std) = backbone_shape(backbone), known(backbone).pixels
    size, rules = shape.image_size, Protocol(name="doctor", precision="bf16", pixel_mean=mean, pixel_std=std)
    segmenter = build_segmenter(backbone, task="binary", image_size=size, head_seed=0)
    method = METHODS.get("lora")(method_config("lora", {}), seed=0)
    method.attach(segmenter)
    segmenter.to(device).train()
    sizes: Any = {"batch": BATCH, "image_size": size, "precision": rules.precision}
    apply_choice(segmenter, choose(shape, rules.attention, device=device, **sizes))
    training = _training(method, rules, device)
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (BATCH, 3, size, size), dtype=np.uint8))
    images = normalise(pixels.to(device), rules.pixels)
    batch = _batch(images, (pixels[:, :1].float() > 127).float().to(device))
    (roles,) = training.passes(epoch=0, step=0)

    def step() -> None:
        training.gradients(roles, [batch], predict=_predictor(segmenter, rules))
        training.update(roles)

    def predict(batch: Tensor) -> Tensor:
        with autocast(rules.precision, device):
            return probabilities(segmenter(normalise(batch.to(device), rules.pixels)), (size, size))

    torch.cuda.reset_peak_memory_stats(device)
    trained = BATCH / _seconds(step, device)
    peak = torch.cuda.max_memory_allocated(device) / 2**30
    segmenter.eval()
    with torch.no_grad():
        passed = BATCH / _seconds(lambda: predict(pixels), device)
    mask = np.indices((size, size)).sum(axis=0) // (size // 8) % 2  # stripes
    items = [(f"{index:03}", pixels[index % BATCH], mask.astype(np.uint8)) for index in range(SCORED)]
    scorer = SplitScorer(("s_measure", "e_mean", "weighted_f", "mae", "iou", "dice", "ber"))
    begun = time.perf_counter()
    evaluate_split(predict, items, scorer, batch_size=BATCH)
    scored = SCORED / (time.perf_counter() - begun)
    return {"step": trained, "passes": passed, "scoring": scored, "loading": _loaded(size), "step_peak_gib": peak}


def _loaded(size: int) -> float:
    """Photographs decoded and resized per second, by as many threads as there are cores."""
    width, height = PHOTOGRAPH
    coarse = np.random.default_rng(0).integers(0, 256, (height // 50, width // 50, 3), dtype=np.uint8)
    mask = np.zeros((height, width), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "photograph.jpg"
        Image.fromarray(coarse).resize(PHOTOGRAPH, Image.Resampling.BICUBIC).save(path, quality=92)
        begun = time.perf_counter()
        with ThreadPoolExecutor(cores()) as pool:
            list(pool.map(lambda _: to_input(Sample(image=read_image(path), mask=mask), size), range(PHOTOGRAPHS)))
        return PHOTOGRAPHS / (time.perf_counter() - begun)
