"""A segmenter as ONNX: RGB in, mask logits and probabilities out, for any batch; what no merge can fold stays in the graph.

The graph is traced at the run's image size, with attention that builds its scores, since only that consists of ONNX's own operations. It is
written only if onnxruntime predicts from it what the segmenter predicts.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.models.segmenter import Segmenter, probabilities
from harness.system.errors import UsageError, writing_to

OPSET = 18
ONNX_TOLERANCE = 1e-4
"""Largest difference between onnxruntime and the segmenter that is written, of logits relative to their largest magnitude."""
_LARGEST = 2_000_000_000
"""Bytes of weights that one file may hold: protobuf ends at 2 GiB. More go into FILE.data."""
INSTEAD = "use --merge calibrated where the method has it, or --adapter-only"


def require_onnx() -> None:
    """Raises UsageError where onnx or onnxruntime is not installed."""
    lacking = [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]
    if lacking:
        raise UsageError(f"--onnx needs {' and '.join(lacking)}: pip install 'sam-peft-harness[onnx]'")


class Graph(nn.Module):
    """RGB (B, 3, S, S) in [0, 1] to mask logits (B, K, h, w) and probabilities (B, S, S) or (B, C, S, S), for labels (B, C).

    Args:
        segmenter: in evaluation mode.
        pixels: mean and standard deviation that its images are normalised with.
        labels: whether it gives an image one label.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, segmenter: Segmenter, pixels: tuple[Sequence[float], Sequence[float]], *, labels: bool) -> None:
        super().__init__()
        self.segmenter, self.labels = segmenter, labels
        for name, values in zip(("mean", "std"), pixels, strict=True):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        output = self.segmenter((images - self.mean) / self.std)
        if self.labels:
            return output.masks, output.masks.flatten(1).softmax(dim=1)
        side = int(images.shape[-1])
        return output.masks, probabilities(output, (side, side))


@torch.no_grad()
def write_onnx(graph: Graph, out: Path, *, images: Tensor, metadata: Mapping[str, str]) -> float:
    """Trace, check against onnxruntime with batches of one and of all, and write the file whole or not at all.

    Args:
        graph: what to write, on the CPU.
        out: the file; weights beyond `_LARGEST` are in ``<name>.data``.
        images: (B, 3, S, S) normalised, on which onnxruntime must agree; a single one is joined by its mirror image.
        metadata: name -> text, stored in the file.

    Returns:
        The largest difference, see `ONNX_TOLERANCE`.

    Raises:
        UsageError: torch cannot put the model into ONNX, onnxruntime gives other outputs, or the file cannot be written.
    """
    if len(images) == 1:
        images = torch.cat([images, images.flip(-1)])
    rgb = images * graph.std + graph.mean
    expected = graph(rgb)
    with (
        writing_to(f"--out {out}"),
        tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.absolute().parent) as folder,
    ):
        traced = Path(folder) / "traced.onnx"
        with _without_fused_kernels(graph):
            _trace(graph, rgb[:2], traced)
        made = Path(folder) / out.name
        data = _finish(traced, made, metadata)
        difference = _difference(made, rgb, expected)
        if not difference <= ONNX_TOLERANCE:
            raise UsageError(f"onnxruntime gives other outputs, by {difference:.1e}; nothing was written")
        for file in (*([data] if data else []), made):
            os.replace(file, out.with_name(file.name))
    return difference


def _trace(graph: Graph, images: Tensor, file: Path) -> None:
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["masks", "probabilities"]}
    axes = {name: {0: "batch"} for name in ("images", "masks", "probabilities")}
    with warnings.catch_warnings(), _without_output():
        # Tracing warns of sizes that become constants, as intended; torch's other exporter needs one more package.
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                graph, (images,), str(file), dynamo=False, opset_version=OPSET, dynamic_axes=axes, **names
            )
        except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
            reason = (
                (str(error).strip() or type(error).__name__).splitlines()[0].partition("  [Caused by")[0].rstrip(".")
            )
            raise UsageError(f"torch cannot write this model as ONNX: {reason}; {INSTEAD}") from error


@contextlib.contextmanager
def _without_output() -> Iterator[None]:
    """Silence torch, which prints a graph that it cannot write from C++, past ``sys.stdout``."""
    kept = os.dup(1)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _finish(traced: Path, out: Path, metadata: Mapping[str, str]) -> Path | None:
    """Write the traced graph with its metadata; and the file of its weights where they are separate."""
    import onnx

    model = onnx.load(traced)
    onnx.helper.set_model_props(model, dict(metadata))
    apart = sum(len(weight.raw_data) for weight in model.graph.initializer) > _LARGEST
    location = f"{out.name}.data"
    onnx.save_model(model, out, save_as_external_data=apart, location=location, size_threshold=0)
    return out.with_name(location) if apart else None


def _difference(file: Path, images: Tensor, expected: tuple[Tensor, Tensor]) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    largest = 0.0
    for batch in (slice(0, 1), slice(None)):
        outputs = session.run(None, {"images": images[batch].numpy()})
        scales = (float(expected[0].abs().max()), 1.0)
        for output, reference, scale in zip(outputs, expected, scales, strict=True):
            if output.shape != tuple(reference[batch].shape):
                raise UsageError(f"onnxruntime gives another shape for another batch; {INSTEAD}")
            largest = max(largest, float((torch.from_numpy(output) - reference[batch]).abs().max()) / scale)
    return largest


@contextlib.contextmanager
def _without_fused_kernels(graph: nn.Module) -> Iterator[None]:
    """Attention that goes through its scores in chunks cannot be traced for any batch."""
    fused = [module for module in graph.modules() if getattr(module, "fused", False) is True]
    for module in fused:
        module.fused = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in fused:
            module.fused = True  # type: ignore[assignment]
