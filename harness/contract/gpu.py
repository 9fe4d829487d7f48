"""The first minutes on a GPU: what it is, whether every method takes a right step on it, which attention is fast, and what feeds it.

Each method takes one step on the tiny SAM in fp32, bf16 and fp16, from the same trained state, and is compared with the same step on the
CPU in fp32. Rates are those of LoRA on a backbone at its own size: the step's, scoring's, and of decoding and resizing photographs.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tabulate import tabulate
from torch import Tensor, nn

from harness.contract.case import SEED, ContractCase
from harness.datasets.base import Sample
from harness.datasets.readers.decoding import read_image
from harness.evaluation.conventions import Conventions
from harness.evaluation.evaluate import evaluate_split
from harness.evaluation.scorer import SplitScorer
from harness.methods.base import Method
from harness.methods.parts.placement import BackboneShape
from harness.models.attention import KERNELS
from harness.models.attention_choice import TIMED
from harness.models.build import build_segmenter
from harness.models.catalog import backbone as known
from harness.models.catalog import backbone_shape
from harness.models.segmenter import probabilities
from harness.protocols.card import Protocol
from harness.registry import METHODS, method_config
from harness.system.errors import UsageError
from harness.system.machine import cores
from harness.training.feeding import normalise
from harness.training.images import to_input
from harness.training.losses import build_loss
from harness.training.optimisers import build_optimisers, update
from harness.training.precision import autocast, without_tf32

EXACT = "math"
"""Attention that the others are compared with."""
LIMITS = {"fp32": 1e-4, "bf16": 0.02, "fp16": 0.002}
"""Largest relative deviation of a loss from the CPU's in fp32."""
GRADIENT_LIMITS = {"fp32": 1e-3, "bf16": 0.1, "fp16": 0.01}
"""Likewise of all gradients together, by their norm. On a CPU the built-in methods deviate by up to 0.023 in bf16 and 0.0007 in fp16."""
ATTENTION_LIMIT = 0.05
"""Of attention in bf16, output and gradients, from the matrix of scores in fp32; that itself deviates by 0.017 on a CPU."""
BATCH = 4
SCORED = 32
RATES = ("step", "passes", "scoring", "loading")
"""Images a second."""
PHOTOGRAPHS, PHOTOGRAPH = 32, (1500, 1000)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a method. ``loss``, ``gradient``: relative deviations from the CPU in fp32, of a method that trains nothing those of
    its masks; ``failed``: why there are none."""

    method: str
    precision: str
    loss: float | None = None
    gradient: float | None = None
    failed: str = ""

    @property
    def right(self) -> bool:
        if self.loss is None or self.gradient is None:
            return False
        return self.loss <= LIMITS[self.precision] and self.gradient <= GRADIENT_LIMITS[self.precision]


@dataclass(frozen=True, kw_only=True)
class Attention:
    """A way to compute attention in a kind of block, one image: milliseconds forward and backward in bf16, and the largest relative
    deviation from the matrix of scores in fp32."""

    name: str
    block: str
    milliseconds: float | None = None
    deviation: float | None = None
    failed: str = ""

    @property
    def right(self) -> bool:
        return self.deviation is not None and self.deviation <= ATTENTION_LIMIT


def require_gpu() -> torch.device:
    """Raises UsageError: torch finds none; says how to get one."""
    if torch.cuda.is_available():
        without_tf32()
        return torch.device("cuda", 0)
    built = (
        f"is built for CUDA {torch.version.cuda} and finds no GPU" if torch.version.cuda else "is built without CUDA"
    )
    raise UsageError(
        f"torch {torch.__version__} {built}; run this where there is a GPU (srun --gpus 1 sam-peft doctor --device cuda), with a torch for "
        "its CUDA (pytorch.org/get-started)"
    )


def facts(device: torch.device) -> dict[str, Any]:
    """What the device and its software are."""
    properties = torch.cuda.get_device_properties(device)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        driver = "unknown"
    return {
        "gpu": torch.cuda.get_device_name(device),
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "capability": f"{properties.major}.{properties.minor}",
        "driver": driver,
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "cudnn": torch.backends.cudnn.version() or "none",
        "bf16": torch.cuda.is_bf16_supported(),
        "cores": cores(),
    }


def steps_of(name: str, device: torch.device) -> list[Step]:
    """A step of a method in every precision."""
    try:
        method = METHODS.get(METHODS.resolve(name))
        case = ContractCase(method=method, config=method_config(name, {}))
        loss, gradient = _step(case, torch.device("cpu"), "fp32")
    except Exception as error:  # a plug-in may raise anything, and the other methods still want their turn
        return [Step(method=name, precision="fp32", failed=f"on the CPU: {_reason(error)}")]
    steps = []
    for precision in LIMITS:
        try:
            value, values = _step(case, device, precision)
        except Exception as error:
            steps.append(Step(method=name, precision=precision, failed=_reason(error)))
            continue
        steps.append(
            Step(
                method=name,
                precision=precision,
                loss=abs(value - loss) / max(abs(loss), 1e-12),
                gradient=_relative(values, gradient),
            )
        )
    return steps


def _step(case: ContractCase, device: torch.device, precision: str) -> tuple[float, Tensor]:
    """Forward, backward and update of a trained copy; the loss, and all gradients in one float64 vector of the CPU."""
    segmenter, method = case.trained()
    segmenter.zero_grad()
    segmenter.to(device).train()
    method.generator.manual_seed(SEED)
    torch.manual_seed(SEED)
    rules = Protocol(name="doctor", precision=precision, lr=1e-3)  # type: ignore[arg-type]
    if not method.config.trains:
        with torch.no_grad(), autocast(rules, device):
            masks = segmenter(case.images.to(device)).masks.float().cpu().double().flatten()
            return float(masks.norm()), masks
    optimisers = build_optimisers(method.parameter_groups(), rules)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16", init_scale=2.0**8)
    loss = _loss(segmenter, method, case.images.to(device), case.targets.to(device), rules)
    scaler.scale(loss).backward()
    factor = scaler.get_scale() if scaler.is_enabled() else 1.0
    gradients = [
        p.grad.detach().cpu().double().flatten() / factor for p in segmenter.parameters() if p.grad is not None
    ]
    update(optimisers.values(), clip=1.0, scaler=scaler)
    if not all(bool(p.isfinite().all()) for p in segmenter.parameters() if p.requires_grad):
        raise ArithmeticError("the update leaves parameters that are not finite")
    return float(loss.detach()), torch.cat(gradients)


def _loss(segmenter: nn.Module, method: Method, images: Tensor, targets: Tensor, rules: Protocol) -> Tensor:
    """The task's loss and the method's own, as a run computes them. ``targets``: (B, 1, h, w) of zeros and ones."""
    size = images.shape[-2:]
    masks = nn.functional.interpolate(targets, size=size)[:, 0].byte()
    with autocast(rules, images.device):
        output = segmenter(images)
    loss: Tensor = build_loss(rules, task="binary", num_classes=2)(output, masks)
    extra = method.auxiliary_loss()
    return loss if extra is None else loss + extra


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def _relative(x: Tensor, reference: Tensor) -> float:
    return float((x - reference).norm() / reference.norm().clamp(min=1e-30))


def attentions(shape: BackboneShape, device: torch.device) -> list[Attention]:
    """Every way in a global block and in a window, where the backbone has relative positions by axes."""
    if shape.relative_positions != "axes":
        return []
    block, side = shape.blocks[0], shape.image_size // shape.patch
    window = max(block.window for block in shape.blocks)
    kinds = {"global": (1, side), "window": ((-(-side // window)) ** 2, window)} if window else {"global": (1, side)}
    found = []
    for kind, (maps, width) in kinds.items():
        generator = torch.Generator().manual_seed(SEED)
        tokens, dim = width * width, block.dim // block.heads
        sizes = [dim, dim, dim, width, width]
        given = [torch.randn(maps, block.heads, tokens, size, generator=generator) for size in sizes]
        exact = _attended(KERNELS[EXACT], [x.to(device) for x in given])
        for name in TIMED:
            attend = KERNELS[name]
            try:
                inputs = [x.to(device, torch.bfloat16) for x in given]
                deviation = max(_relative(x.float(), y) for x, y in zip(_attended(attend, inputs), exact, strict=True))
                took = _seconds(lambda attend=attend, inputs=inputs: _attended(attend, inputs), device)  # type: ignore[misc]
                found.append(Attention(name=name, block=kind, milliseconds=1000 * took, deviation=deviation))
            except Exception as error:  # no kernel, no memory: the others still want their turn
                found.append(Attention(name=name, block=kind, failed=_reason(error)))
    return found


def _attended(attend: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """The output, and the gradients of its sum of squares."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = attend(*leaves, scale=leaves[0].shape[-1] ** -0.5)
    out.float().square().sum().backward()
    return [out.detach(), *(x.grad for x in leaves if x.grad is not None)]


def _seconds(work: Callable[[], object], device: torch.device, *, times: int = 5) -> float:
    """The median of several times, after one that is not counted."""
    taken = []
    for _ in range(times + 1):
        torch.cuda.synchronize(device)
        begun = time.perf_counter()
        work()
        torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - begun)
    return sorted(taken[1:])[times // 2]


def rates(backbone: str, device: torch.device) -> dict[str, float]:
    """Images a second of LoRA's training step and of passes alone, of scoring with nothing to decode, and of decoding and resizing
    JPEGs on all cores; and the step's peak memory in GiB."""
    shape = backbone_shape(backbone)
    size = shape.image_size
    segmenter = build_segmenter(backbone, task="binary", image_size=size, head_seed=0)
    method = METHODS.get("lora")(method_config("lora", {}), seed=0)
    method.attach(segmenter)
    segmenter.to(device).train()
    mean, std = known(backbone).pixels
    rules = Protocol(name="doctor", precision="bf16", pixel_mean=mean, pixel_std=std)
    optimisers = build_optimisers(method.parameter_groups(), rules)
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    source = np.random.default_rng(0)
    pixels = torch.from_numpy(source.integers(0, 256, (BATCH, 3, size, size), dtype=np.uint8))
    images = normalise(pixels.to(device), rules.pixels)
    targets = (pixels[:, :1].float() > 127).float().to(device)

    def step() -> None:
        _loss(segmenter, method, images, targets, rules).backward()
        update(optimisers.values(), clip=1.0, scaler=scaler)

    torch.cuda.reset_peak_memory_stats(device)
    trained = BATCH / _seconds(step, device)
    peak = torch.cuda.max_memory_allocated(device) / 2**30
    segmenter.eval()

    def predict(batch: Tensor) -> Tensor:
        with autocast(rules, device):
            return probabilities(segmenter(normalise(batch.to(device), rules.pixels)), (size, size))

    with torch.no_grad():
        passed = BATCH / _seconds(lambda: predict(pixels), device)
    mask: NDArray[np.uint8] = np.kron(
        source.integers(0, 2, (8, 8), dtype=np.uint8), np.ones((size // 8, size // 8), np.uint8)
    )
    items = [(f"{index:03}", pixels[index % BATCH], mask) for index in range(SCORED)]
    metrics = ("s_measure", "e_mean", "weighted_f", "mae", "iou", "dice", "ber")
    scorer = SplitScorer(metrics, task="binary", num_classes=2, conventions=Conventions())
    begun = time.perf_counter()
    evaluate_split(predict, items, scorer, batch_size=BATCH)
    scored = SCORED / (time.perf_counter() - begun)
    return {
        "step": trained,
        "passes": passed,
        "scoring": scored,
        "loading": _loaded(size),
        "step_peak_gib": peak,
    }


def _loaded(size: int) -> float:
    """Photographs decoded and resized a second, by as many threads as there are cores."""
    source = np.random.default_rng(0)
    width, height = PHOTOGRAPH
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "photograph.jpg"
        coarse = Image.fromarray(source.integers(0, 256, (height // 50, width // 50, 3), dtype=np.uint8))
        coarse.resize(PHOTOGRAPH, Image.Resampling.BICUBIC).save(path, quality=92)
        mask = np.zeros((height, width), dtype=np.uint8)
        begun = time.perf_counter()
        with ThreadPoolExecutor(cores()) as pool:
            list(pool.map(lambda _: to_input(Sample(image=read_image(path), mask=mask), size), range(PHOTOGRAPHS)))
        return PHOTOGRAPHS / (time.perf_counter() - begun)


@dataclass(frozen=True, kw_only=True)
class Examined:
    """What was found on a GPU; see `steps_of`, `attentions` and `rates`."""

    backbone: str
    device: dict[str, Any]
    steps: list[Step]
    attention: list[Attention]
    rates: dict[str, float]
    rates_failed: str = ""

    @property
    def failures(self) -> list[str]:
        """A line for each thing that is not right; empty where all is."""
        wrong = [
            f"{step.method} in {step.precision}: "
            + (step.failed or f"loss {step.loss:.1e}, gradients {step.gradient:.1e} from the CPU's in fp32")
            for step in self.steps
            if not step.right
        ]
        wrong += [f"rates: {self.rates_failed}"] if self.rates_failed else []
        return wrong + [
            f"{way.name} attention, {way.block}: " + (way.failed or f"{way.deviation:.1e} from math in fp32")
            for way in self.attention
            if not way.right
        ]

    @property
    def hints(self) -> list[str]:
        """What keeps the GPU waiting."""
        if self.rates_failed:
            return []
        hints, cpus = [], self.device.get("cores", 1)
        step, passes, scoring, loading = (self.rates[name] for name in RATES)
        if loading < step:
            hints.append(
                f"{cpus} cores decode {loading:.0f} images/s and the step takes {step:.0f}: the first epoch waits for images; "
                "keep them decoded (setting cache), or give a job more cores"
            )
        if scoring < 0.7 * passes:
            hints.append(
                f"scoring takes {scoring:.0f} images/s on {cpus} cores and the network gives {passes:.0f}: give a job more cores"
            )
        if not self.device.get("bf16", True):
            hints.append("this GPU has no bf16: --set precision=fp16")
        return hints

    def as_json(self) -> dict[str, Any]:
        """Plain values, to be sent with an issue."""
        return {**asdict(self), "failures": self.failures, "hints": self.hints}


def examine_gpu(*, backbone: str, methods: Sequence[str], report: Callable[[str], None]) -> Examined:
    """Everything of this module on the first GPU. Raises UsageError: there is none."""
    device = require_gpu()
    shape = backbone_shape(backbone)
    steps = []
    for number, name in enumerate(methods, start=1):
        report(f"a step of {name} ({number}/{len(methods)})")
        steps += steps_of(name, device)
    report("attention")
    ways = attentions(shape, device)
    report(f"rates of {backbone}")
    measured, failed = dict[str, float](), ""
    try:
        measured = rates(backbone, device)
    except Exception as error:  # no memory, say; what was found before is still worth sending
        failed = _reason(error)
    return Examined(
        backbone=backbone, device=facts(device), steps=steps, attention=ways, rates=measured, rates_failed=failed
    )


def gpu_page(examined: Examined) -> str:
    """For a terminal: the device, deviations by method, attention, rates, and the verdict."""
    lines = ["  ".join(f"{name} {value}" for name, value in examined.device.items()), ""]
    by_method: dict[str, list[Step]] = {}
    for step in examined.steps:
        by_method.setdefault(step.method, []).append(step)
    rows = [
        [name, *(step.failed or f"{step.loss:.1e} / {step.gradient:.1e}" for step in steps)]
        for name, steps in by_method.items()
    ]
    heads = ["method", *(f"{precision}: loss / gradients" for precision in LIMITS)]
    lines += [
        "Relative deviations of one step from the CPU's in fp32",
        tabulate(rows, headers=heads, tablefmt="github"),
        "",
    ]
    if examined.attention:
        rows = [
            [
                way.block,
                way.name,
                *([way.failed, ""] if way.failed else [f"{way.milliseconds:.2f}", f"{way.deviation:.1e}"]),
            ]
            for way in examined.attention
        ]
        heads = ["block", "attention", "forward and backward (ms)", "from math in fp32"]
        lines += [
            f"Attention of {examined.backbone}, one image, bf16",
            tabulate(rows, headers=heads, tablefmt="github"),
            "",
        ]
    if examined.rates:
        said = ", ".join(f"{name} {examined.rates[name]:.1f}" for name in RATES)
        lines += [
            f"{examined.backbone}, LoRA, batch {BATCH}, bf16, images/s: {said}",
            f"peak memory of the step: {examined.rates['step_peak_gib']:.1f} GiB",
        ]
    lines += [
        *examined.hints,
        *(f"NOT RIGHT: {line}" for line in examined.failures),
        "right"
        if not examined.failures
        else f"{len(examined.failures)} things are not right; send the output of --json",
    ]
    return "\n".join(lines)
