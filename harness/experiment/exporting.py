"""The trained model of a finished run as a file: a plain SAM checkpoint, the trained tensors alone, or an adapter in the format of
Hugging Face's PEFT, for transformers' ``SamModel``. Read `export` downwards. `verify` loads what was written: a whole checkpoint by
segment_anything's own registry or into its own modules, and trained tensors alone into a freshly built segmenter.

LoRA and SAMed are what PEFT calls LoRA. A cell (NAS-LoRA, NAS-PC-LoRA, Conv-LoRA) is not, but the affine map (M, c) of
the bottleneck that is fitted to it on training images is: A' = M A, B, and a bias s · B c on the layer. The mask decoder,
which every method trains, travels whole as a module to save.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from segment_anything import sam_model_registry
from torch import Tensor

from harness.archive.schema import Run
from harness.experiment.building import open_below
from harness.experiment.exporting_onnx import INPUTS, OPSET, Graph, require_onnx, write_onnx
from harness.experiment.trained import METADATA, of_results, trained_segmenter
from harness.methods.base import MergeMode, MergeReport, Method
from harness.methods.parts.placement import MethodError
from harness.models.build import build_segmenter
from harness.models.catalog import backbone
from harness.models.checkpoint import read_tensors
from harness.models.original_sam import SAM_ENCODERS, plain_sam, sam_state_dict
from harness.models.published import CARD, MODELS, card_of, hf_name
from harness.models.sam2 import is_memory
from harness.models.sam_encoder import SAMEncoder
from harness.models.segmenter import SAMSegmenter, Segmenter
from harness.planning.understand import data_folder
from harness.protocols.load import from_rules
from harness.registry import METHODS
from harness.system.errors import UsageError, writing_to
from harness.system.files import new_folder, replace_atomically, write_atomically
from harness.training.feeding import normalise
from harness.training.images import ImageSource

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_DECODER = "mask_decoder"


def require_affine(method: Method) -> Any:
    """The method, whose updates are low-rank updates of linear layers (`harness.methods.lora.LowRankMethod.affine_updates`). Raises
    UsageError: they are not."""
    if getattr(method, "affine_updates", None) is None:
        raise UsageError(
            f"{method.name} is no low-rank update of linear layers, which is all that PEFT's LoRA format holds; "
            "use --adapter-only"
        )
    if method.config.freezes_decoder:
        raise UsageError(
            f"{method.name} adapts the mask decoder too, which goes whole into a PEFT export; merge it into a whole SAM, or use "
            "--adapter-only"
        )
    return method


def _peft(
    segmenter: SAMSegmenter, method: Method, request: Export, train: Sequence[Tensor], *, base: str | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Content of ``adapter_config.json``, and the tensors of ``adapter_model.safetensors``.

    Args:
        segmenter: a SAM with ``method`` attached and its state loaded, in evaluation mode.
        method: not merged.
        train: batches (B, 3, S, S) of training images, to which ``calibrated`` fits cells.
        base: name on the Hub of the model that it belongs to, None where it has none.
    """
    decoder = {
        f"{_PREFIX}{hf_name(f'{_DECODER}.{name}')}": tensor
        for name, tensor in segmenter.mask_decoder.plain_state().items()
    }
    if (adapter := getattr(method, "adapter", None)) is not None:  # of peft's own tuners
        given, own = adapter(lambda layer: hf_name(f"image_encoder.{layer}"))
        return {**given, "base_model_name_or_path": base, "modules_to_save": [_DECODER]}, own | decoder
    affine = require_affine(method)
    if request.merge == "calibrated":
        _require_images(train)
    try:
        updates = affine.affine_updates(train if request.merge == "calibrated" else ())
    except MethodError as error:
        raise UsageError(
            f"{method.name} has cells, which PEFT's format holds only as low-rank updates that are fitted to them; "
            "use --merge calibrated or --adapter-only"
        ) from error
    layers = {hf_name(f"image_encoder.{update.layer}"): update for update in updates}
    biased = any(bool(update.offset.any()) for update in updates)
    tensors: dict[str, Tensor] = {}
    for name, update in layers.items():
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = update.down
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = update.up
        if biased:
            tensors[f"{_PREFIX}{name}.lora_B.bias"] = update.offset
    tensors |= decoder
    ranks = {name: len(update.down) for name, update in layers.items()}
    rank = max(ranks.values())
    differing = {name: layer_rank for name, layer_rank in ranks.items() if layer_rank != rank}
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,  # the scale is in B
        "rank_pattern": differing,
        "alpha_pattern": differing,
        "target_modules": sorted(ranks),
        "modules_to_save": [_DECODER],
        "lora_bias": biased,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
    }
    return config, tensors


def _write_peft(request: Export, run: Run, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Both files and the model card, all of them or none."""
    with writing_to(f"--out {request.out}"), new_folder(request.out) as new:
        (new / TENSORS).write_bytes(save(_on_cpu(tensors), {"format": "pt", METADATA: _metadata(run)}))
        (new / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        (new / CARD).write_text(request.card, encoding="utf-8")


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


Form = Literal["sam", "adapter", "peft", "onnx"]

HELD_OUT = 4
"""Images on which a deviation is measured."""
BATCH = 4


@dataclass(frozen=True, kw_only=True)
class Export:
    """What to write.

    Args:
        results: results folder of the run.
        run: the run's key, or a beginning of it that fits one run only.
        out: the file to write; of ``peft`` the folder.
        form: ``sam``, a whole checkpoint; ``adapter``, the trained tensors alone; ``peft``; ``onnx``.
        merge: merge mode; of no account for ``adapter``.
        checkpoint: the pretrained weights that the run started from, None for a run from random weights.
        data: folder that holds the benchmark; needed by ``calibrated``, and used for the deviation where given. A run
            on generated samples finds its own.
        card: text of the model card, ``README.md`` in a folder and for a file what `card_of` says.
    """

    results: Path
    run: str
    out: Path
    form: Form = "sam"
    merge: MergeMode = "exact"
    checkpoint: Path | None = None
    data: Path | None = None
    card: str = ""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written.

    Args:
        report: the merge, None where there was nothing to merge.
        held_out: the images of the deviation, (B, 3, S, S), normalised.
        masks: mask logits of the exported model on them, (B, K, h, w).
        real: whether they are the benchmark's validation images, or random ones.
        difference: of ``onnx``, by how much onnxruntime differs at most.
    """

    run: Run
    out: Path
    form: Form
    report: MergeReport | None
    held_out: Tensor
    masks: Tensor
    real: bool
    difference: float | None = None

    def summary(self) -> str:
        """One line: what the file is, and what the merge cost."""
        line = f"{self.run.variant} on {self.run.benchmark}, seed {self.run.seed}"
        if self.report is not None:
            left = f", {len(self.report.left)} kept as they are" if self.report.left and self.form == "onnx" else ""
            images = f"{len(self.held_out)} {'validation' if self.real else 'random'} images"
            line += (
                f", merged by {self.report.mode}: {len(self.report.folded)} sites folded{left}, mask logits differ from the "
                f"unmerged model's by {self.report.relative_deviation:.1e} (relative, on {images})"
            )
        if self.difference is not None:
            line += f"; onnxruntime differs by {self.difference:.1e} at most (relative, opset {OPSET})"
        return line


REGISTRY = ("vit_b", "vit_l", "vit_h")
REGISTRY_SIZE = 1024
"""What ``segment_anything.sam_model_registry`` builds, and the only size of position tables that it loads."""


def in_registry(run: Run) -> bool:
    """Whether a whole export of the run loads in segment_anything's own registry."""
    return run.backbone in REGISTRY and run.rules["image_size"] == REGISTRY_SIZE


def code_to_load(run: Run, form: Form, out: str) -> str:
    """Python that loads the exported file ``out``. Capitals are what the reader fills in."""
    side = run.rules["image_size"]
    if form == "adapter":
        start = ', checkpoint="FILE"' if run.checkpoint else ""
        lines = ["from harness.experiment.trained import load_adapter  # pip install sam-peft-harness", ""]
        if not METHODS.is_fixed(run.method):
            lines[1:1] = ["from pathlib import Path", "from harness.registry import load_plugin"]
            lines.append('load_plugin(Path("FILE.py"))')
        return "\n".join([*lines, f"segmenter, method = load_adapter({out!r}{start})"])
    if form == "peft":
        base = base_model(run) or "WEIGHTS"
        return (
            "from peft import PeftModel\nfrom transformers import SamModel\n\n"
            "# of a method peft/NAME on q, k and v: give SamModel to harness.methods.peft.split first\n"
            f"model = PeftModel.from_pretrained(SamModel.from_pretrained({base!r}), {out!r})"
        )
    if form == "onnx":
        name = INPUTS.get(run.rules.get("prompt", "none"))
        more = f", {name!r}: {name.upper()}" if name else ""
        return (
            "import numpy as np\nimport onnxruntime\n\n"
            f"rgb = np.zeros((1, 3, {side}, {side}), np.float32)  # in [0, 1]\n"
            f"outputs = onnxruntime.InferenceSession({out!r}).run(None, {{'images': rgb{more}}})"
        )
    if in_registry(run):
        return (
            "from segment_anything import sam_model_registry\n\n"
            f"sam = sam_model_registry[{run.backbone!r}](checkpoint={out!r})"
        )
    if backbone(run.backbone).shape.stem:
        return f"from mobile_sam import sam_model_registry\n\nsam = sam_model_registry['vit_t'](checkpoint={out!r})"
    if backbone(run.backbone).shape.pyramid and run.checkpoint:
        return f"from sam2.build_sam import build_sam2\n\nmodel = build_sam2('CONFIG', {out!r})"
    return (
        "import torch\nfrom harness.models.original_sam import plain_sam  # pip install sam-peft-harness\n\n"
        f"sam = plain_sam({run.backbone!r}, image_size={side})\n"
        f"sam.load_state_dict(torch.load({out!r}, weights_only=True))"
    )


def export(request: Export, *, progress: Callable[[str], None] = lambda stage: None) -> Exported:
    """Build the run's segmenter, load its best state, merge, and write the file (whole or not at all).

    Args:
        progress: called with each stage as it begins.

    Raises:
        UsageError: unknown run, a run without a trained state, the wrong checkpoint, or a model that the file cannot
            hold; the message says what would work.
        MethodError: the method has no such merge mode.
    """
    if request.form == "onnx":
        require_onnx()
    progress("loading the model")
    trained = of_results(request.results, request.run)
    run = trained.run
    segmenter, method = trained.segmenter(request.checkpoint)
    sam = _require_sam(segmenter, run, form=request.form) if request.form in ("sam", "peft") else None
    progress("reading images")
    train, held_out = calibration_images(run, data_folder(run, data=request.data, results=request.results))
    real = held_out is not None
    if held_out is None:
        side = from_rules(run.rules).image_size
        held_out = torch.randn(HELD_OUT, 3, side, side, generator=torch.Generator().manual_seed(0))
    report = difference = None
    if request.form == "peft":
        assert sam is not None
        progress("fitting low-rank updates")
        _write_peft(request, run, *_peft(sam, method, request, train, base=base_model(run)))
    if request.form != "adapter":
        progress(f"merging ({request.merge})")
        report = _merge(method, request, train=train, held_out=held_out)
    progress("writing")
    if request.form == "sam":
        _write(request, run, _plain_state(segmenter, method, request.merge) | _memory(request, run))
    elif request.form == "adapter":
        _write(request, run, trained.state)
    elif request.form == "onnx":
        rules = from_rules(run.rules)
        labels = rules.task == "classification"
        graph = Graph(segmenter, rules.pixels, labels=labels, prompt=rules.prompt, points=rules.prompt_points).eval()
        difference = write_onnx(
            graph,
            request.out,
            images=held_out,
            metadata={METADATA: _metadata(run)},
        )
    # After the file: a full disk leaves no card of a model that is not there.
    if request.form != "peft" and request.card:
        path = card_of(request.out)
        with writing_to(f"{request.out} is written, its model card {path}", then="; export again with --force"):
            write_atomically(path, request.card)
    return Exported(
        run=run,
        out=request.out,
        form=request.form,
        report=report,
        held_out=held_out,
        masks=mask_logits(segmenter, held_out),
        real=real,
        difference=difference,
    )


def base_model(run: Run) -> str | None:
    """Name on the Hub of what the run started from; None for random weights and for a backbone that has none there."""
    return MODELS.get(run.backbone) if run.checkpoint else None


def calibration_images(run: Run, data: Path | None) -> tuple[list[Tensor], Tensor | None]:
    """Calibration batches of the training split and held-out images of the validation split, as the run saw them."""
    if data is None:
        return [], None
    rules = from_rules(run.rules)
    opened = open_below(run, data)

    def load(source: ImageSource, count: int) -> Tensor:
        images = torch.stack([torch.from_numpy(source.image(index)) for index in range(min(count, len(source)))])
        return normalise(images, rules.pixels)

    return list(load(opened.train, rules.calibration_images).split(BATCH)), load(opened.val, HELD_OUT)


def _require_sam(segmenter: Segmenter, run: Run, *, form: Form) -> SAMSegmenter:
    """Refuse before the work of a merge what cannot become a SAM checkpoint after it."""
    if not isinstance(segmenter.encoder, SAM_ENCODERS):
        what = "be loaded by PEFT into transformers' SamModel" if form == "peft" else "become a SAM checkpoint"
        raise UsageError(f"{run.backbone} is no SAM backbone and cannot {what}; use --adapter-only")
    if form == "peft" and not isinstance(segmenter.encoder, SAMEncoder):
        raise UsageError(
            f"PEFT loads into transformers' SamModel, which {run.backbone} is not; leave --peft out for a whole checkpoint, or "
            "use --adapter-only"
        )
    assert isinstance(segmenter, SAMSegmenter)  # no other decoder stands on SAM's encoder
    if segmenter.head is not None:
        raise UsageError(f"{run.benchmark} has a class head, which a SAM checkpoint cannot hold; use --adapter-only")
    if not segmenter.mask_decoder.attends_to_spare_tokens:
        raise UsageError(
            f"run {run.key} was trained without SAM's mask tokens 1-3 (quirk 14), so a SAM checkpoint would give other masks; "
            "use --adapter-only, or train with --set quirks.spare_tokens=intended"
        )
    return segmenter


def _merge(method: Method, request: Export, *, train: Sequence[Tensor], held_out: Tensor) -> MergeReport | None:
    if request.merge == "calibrated":
        _require_images(train)
    as_it_is = request.form == "onnx" and request.merge == "exact" and "exact" not in method.merge_modes
    if (
        as_it_is or not method.merge_modes
    ):  # full fine-tuning and decoder-only add nothing; others are refused when written
        return None
    return method.merge(request.merge, calibration=train, held_out=list(held_out.split(BATCH)))


def _require_images(train: Sequence[Tensor]) -> None:
    if not train:
        raise UsageError("--merge calibrated fits on training images; give their folder with --data")


def _plain_state(segmenter: Segmenter, method: Method, mode: MergeMode) -> dict[str, Tensor]:
    try:
        return sam_state_dict(segmenter)
    except ValueError as error:
        fit = mode != "calibrated" and "calibrated" in method.merge_modes
        instead = "--merge calibrated or --adapter-only" if fit else "--adapter-only"
        raise UsageError(
            f"{method.name} merged by {mode} keeps parts that a SAM checkpoint cannot hold; use {instead}"
        ) from error


def _memory(request: Export, run: Run) -> dict[str, Tensor]:
    """SAM 2's memory as the run's checkpoint has it: no image passed it, and Meta's own code loads no file without."""
    if request.checkpoint is None or not backbone(run.backbone).shape.pyramid:
        return {}
    return {name: tensor for name, tensor in read_tensors(request.checkpoint).items() if is_memory(name)}


def _metadata(run: Run) -> str:
    return json.dumps({"run": asdict(run)}, sort_keys=True)


def _write(request: Export, run: Run, content: Mapping[str, Tensor]) -> None:
    tensors = _on_cpu(content)

    def write(path: Path) -> None:
        if request.form == "adapter":
            path.write_bytes(save(tensors, {METADATA: _metadata(run)}))
        else:
            torch.save({"model": tensors} if backbone(run.backbone).shape.pyramid else tensors, path)

    with writing_to(f"--out {request.out}"):
        replace_atomically(request.out, write)


@torch.no_grad()
def mask_logits(segmenter: Segmenter, images: Tensor) -> Tensor:
    """(B, 3, S, S) to (B, K, h, w)."""
    return torch.cat([segmenter(batch).masks for batch in images.split(BATCH)])


TOLERANCE = 1e-4
"""Largest difference of mask logits, relative to their largest magnitude, that passes as equal after reloading."""


def verify(exported: Exported, request: Export) -> float:
    """Load the written file; the largest relative difference of its predictions. Raises UsageError: it predicts something else."""
    run, images = exported.run, exported.held_out
    if request.form == "adapter":
        segmenter, _ = trained_segmenter(run, read_tensors(request.out), checkpoint=request.checkpoint)
        masks = mask_logits(segmenter, images)
    else:
        masks = sam_masks(run, request.out, images)
    difference = float((masks - exported.masks).abs().max() / exported.masks.abs().max())
    if not difference <= TOLERANCE:
        raise UsageError(
            f"{request.out} was written, but predicts otherwise when loaded: relative difference {difference:.2e}"
        )
    return difference


@torch.no_grad()
def sam_masks(run: Run, file: Path, images: Tensor) -> Tensor:
    """Low-resolution mask logits (B, 1, h, w) of segment_anything's own modules, loaded strictly from ``file``; of ours for
    MobileSAM and SAM 2."""
    shape = backbone(run.backbone).shape
    if shape.stem or shape.pyramid:
        side = from_rules(run.rules).image_size
        return mask_logits(build_segmenter(run.backbone, task="binary", checkpoint=file, image_size=side), images)
    if in_registry(run):
        sam = sam_model_registry[run.backbone](checkpoint=str(file))
    else:
        sam = plain_sam(run.backbone, image_size=from_rules(run.rules).image_size)
        sam.load_state_dict(torch.load(file, map_location="cpu", weights_only=True), strict=True)
    masks = []
    for image in images:
        sparse, dense = sam.prompt_encoder(points=None, boxes=None, masks=None)
        embedding = sam.image_encoder(image.unsqueeze(0))
        low, _ = sam.mask_decoder(
            image_embeddings=embedding,
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        masks.append(low)
    return torch.cat(masks)
