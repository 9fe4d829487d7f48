"""The trained model of a finished run as a file; read `export` downwards.

The file is a plain SAM checkpoint, the trained tensors alone, an adapter in the format of Hugging Face's PEFT for transformers'
``SamModel``, or ONNX.

PEFT's LoRA format holds LoRA and SAMed. It also holds the affine map (M, c) that ``calibrated`` fits to a cell (NAS-LoRA, NAS-PC-LoRA,
Conv-LoRA) on training images: A' = M A, B, and a bias s · B c on the layer. The mask decoder travels whole as a module to save.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor

from harness.archive.schema import Run
from harness.experiment.building import first_images, open_data
from harness.experiment.exporting_onnx import OPSET, Graph, require_onnx, write_onnx
from harness.experiment.trained import METADATA, Trained
from harness.methods.base import MergeMode, MergeReport, Method
from harness.methods.parts.placement import MethodError
from harness.models.catalog import backbone
from harness.models.checkpoint import read_tensors
from harness.models.original_sam import is_of_sam, sam_state_dict
from harness.models.published import CARD, MODELS, card_of, hf_name
from harness.models.sam2 import is_memory
from harness.models.sam_encoder import SAMEncoder
from harness.models.segmenter import SAMSegmenter, Segmenter
from harness.planning.data import benchmark_of
from harness.protocols.load import from_rules
from harness.registry import METHODS
from harness.system.errors import UsageError, writing_to
from harness.system.files import new_folder, replace_atomically, write_atomically
from harness.training.feeding import normalise

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_DECODER = "mask_decoder"
PEFT_MERGES = ("LORA", "ADALORA")
"""Kinds of adapters that peft merges where a module is saved with them."""

Form = Literal["sam", "adapter", "peft", "onnx"]

SAFETENSORS = ".safetensors"
HELD_OUT = 4
"""Images on which a merge's deviation is measured."""
BATCH = 4
REGISTRY = ("vit_b", "vit_l", "vit_h")
REGISTRY_SIZE = 1024
"""What ``segment_anything.sam_model_registry`` builds, and the only size of position tables that it loads."""


def export(
    trained: Trained,
    *,
    out: Path,
    form: Form = "sam",
    merge: MergeMode = "exact",
    checkpoint: Path | None = None,
    data: Path | None = None,
    card: str = "",
    progress: Callable[[str], None] = lambda stage: None,
) -> tuple[str, Segmenter, Tensor]:
    """Build the run's segmenter, load its best state, merge, and write the file (whole or not at all).

    Args:
        out: the file to write; of ``peft`` the folder.
        form: ``sam``, a whole checkpoint; ``adapter``, the trained tensors alone; ``peft``; ``onnx``.
        merge: merge mode; ``adapter`` ignores it.
        checkpoint: the pretrained weights that the run started from, None for a run from random weights.
        data: folder that holds the benchmark. ``calibrated`` needs it; the deviation is measured on its validation images, else on
            random ones.
        card: text of the model card, ``README.md`` in a folder and for a file what `card_of` says; empty for none.
        progress: called with each stage as it begins.

    Returns:
        One line on the file and on what the merge cost; the segmenter as written; the images (B, 3, S, S), normalised, on which the
        deviation was measured.

    Raises:
        UsageError: the wrong checkpoint, or a model that the file cannot hold; the message says what would work.
        MethodError: the method has no such merge mode.
    """
    run = trained.run
    rules = from_rules(run.rules)
    if form == "onnx":
        require_onnx()
        if rules.prompt != "none":
            raise UsageError(
                f"run {run.key} was trained with prompts ({rules.prompt}), and a graph takes images alone; write a whole SAM, which "
                "segment_anything's scripts/export_onnx_model.py exports with its prompts"
            )
    progress("loading the model")
    segmenter, method = trained.segmenter(checkpoint)
    if form in ("sam", "peft"):
        _require_sam(segmenter, run, form=form)
    if form == "sam" and backbone(run.backbone).shape.upscaled and out.suffix != SAFETENSORS:
        raise UsageError(f"--out {out}: SAM 3 is written as transformers reads it; let the name end in {SAFETENSORS}")
    progress("reading images")
    train, held_out = calibration_images(run, data)
    kind = "random" if held_out is None else "validation"
    if held_out is None:
        side = rules.image_size
        held_out = torch.randn(HELD_OUT, 3, side, side, generator=torch.Generator().manual_seed(0))
    if merge == "calibrated" and form != "adapter" and not train:
        raise UsageError("--merge calibrated fits on training images; give their folder with --data")
    if form == "peft":
        progress("fitting low-rank updates")
        config, tensors = _peft(segmenter, method, train if merge == "calibrated" else (), base=base_model(run))
        with writing_to(f"--out {out}"), new_folder(out) as new:
            (new / TENSORS).write_bytes(save(_on_cpu(tensors), {"format": "pt", METADATA: _metadata(run)}))
            (new / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
            (new / CARD).write_text(card, encoding="utf-8")
    report: MergeReport | None = None
    # Full fine-tuning and decoder-only have nothing to merge; ONNX takes a method without an exact merge as it is.
    as_it_is = form == "onnx" and merge == "exact" and "exact" not in method.merge_modes
    if form != "adapter" and method.merge_modes and not as_it_is:
        progress(f"merging ({merge})")
        report = method.merge(merge, calibration=train, held_out=list(held_out.split(BATCH)))
    progress("writing")
    difference = 0.0
    if form == "sam":
        state = _plain_state(segmenter, method, merge)
        sam_2 = bool(backbone(run.backbone).shape.pyramid)
        if sam_2 and checkpoint is not None:
            # Its memory: no image passes it, and Meta's own code loads no file without.
            state |= {name: tensor for name, tensor in read_tensors(checkpoint).items() if is_memory(name)}
        whole = {"model": _on_cpu(state)} if sam_2 else _on_cpu(state)
        with writing_to(f"--out {out}"):
            if out.suffix == SAFETENSORS:
                write_atomically(out, save(_on_cpu(state), {"format": "pt"}))
            else:
                replace_atomically(out, lambda path: torch.save(whole, path))
    elif form == "adapter":
        content = save(_on_cpu(trained.state), {METADATA: _metadata(run)})
        with writing_to(f"--out {out}"):
            write_atomically(out, content)
    elif form == "onnx":
        graph = Graph(segmenter, rules.pixels, labels=rules.task == "classification").eval()
        difference = write_onnx(graph, out, images=held_out, metadata={METADATA: _metadata(run)})
    # After the file: a full disk leaves no card of a model that is not there.
    if form != "peft" and card:
        path = card_of(out)
        with writing_to(f"{out} is written, its model card {path}", then="; export again with --force"):
            write_atomically(path, card)
    line = f"{run.label} on {run.benchmark}, seed {run.seed}"
    if report is not None:
        left = f", {len(report.left)} kept as they are" if report.left and form == "onnx" else ""
        line += (
            f", merged by {report.mode}: {len(report.folded)} sites folded{left}, mask logits differ from the unmerged model's "
            f"by {report.relative_deviation:.1e} (relative, on {len(held_out)} {kind} images)"
        )
    if form == "peft" and config["peft_type"] not in PEFT_MERGES:
        line += "; peft loads it and cannot merge it beside a saved mask decoder; for merged weights leave --peft out"
    if form == "onnx":
        line += f"; onnxruntime differs by {difference:.1e} at most (relative, opset {OPSET})"
    return line, segmenter, held_out


def calibration_images(run: Run, data: Path | None) -> tuple[list[Tensor], Tensor | None]:
    """Calibration batches of the training split and held-out images of the validation split, normalised; none without ``data``."""
    if data is None:
        return [], None
    rules = from_rules(run.rules)
    opened = open_data(run, benchmark_of(run.benchmark, rules).locate(data))
    train, held_out = first_images(opened.train, rules.calibration_images), first_images(opened.val, HELD_OUT)
    return list(normalise(train, rules.pixels).split(BATCH)), normalise(held_out, rules.pixels)


def _require_sam(segmenter: Segmenter, run: Run, *, form: Form) -> None:
    """Refuse before the work of a merge what cannot become a SAM checkpoint after it."""
    if not is_of_sam(segmenter.encoder):
        raise UsageError(f"{run.backbone} is not a SAM backbone; use --adapter-only")
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


def _peft(
    segmenter: Any, method: Method, calibration: Sequence[Tensor], *, base: str | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Content of ``adapter_config.json``, and the tensors of ``adapter_model.safetensors``.

    Args:
        segmenter: a SAM with ``method`` attached and its state loaded, in evaluation mode.
        method: not merged.
        calibration: batches (B, 3, S, S) of training images to which cells are fitted; empty where none are.
        base: name on the Hub of the model that it belongs to, None where it has none.

    Raises:
        UsageError: the method is not a low-rank update of linear layers, or has cells that were not fitted.
    """
    decoder = {
        f"{_PREFIX}{hf_name(f'{_DECODER}.{name}')}": tensor
        for name, tensor in segmenter.mask_decoder.plain_state().items()
    }
    if (adapter := getattr(method, "adapter", None)) is not None:  # of peft's own tuners
        given, own = adapter(lambda layer: hf_name(f"image_encoder.{layer}"))
        return {**given, "base_model_name_or_path": base, "modules_to_save": [_DECODER]}, own | decoder
    affine: Any = getattr(method, "affine_updates", None)
    if affine is None:
        raise UsageError(
            f"{method.name} is not a low-rank update of linear layers, which is all that PEFT's LoRA format holds; use --adapter-only"
        )
    if method.config.freezes_decoder:
        raise UsageError(
            f"{method.name} adapts the mask decoder too, which goes whole into a PEFT export; merge it into a whole SAM, or use "
            "--adapter-only"
        )
    try:
        layers = {hf_name(f"image_encoder.{update.layer}"): update for update in affine(calibration)}
    except MethodError as error:
        raise UsageError(
            f"{method.name} has cells, which PEFT's format holds only as low-rank updates that are fitted to them; "
            "use --merge calibrated or --adapter-only"
        ) from error
    biased = any(bool(update.offset.any()) for update in layers.values())
    tensors: dict[str, Tensor] = {}
    for name, update in layers.items():
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = update.down
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = update.up
        if biased:
            tensors[f"{_PREFIX}{name}.lora_B.bias"] = update.offset
    ranks = {name: len(update.down) for name, update in layers.items()}
    rank = max(ranks.values())
    differing = {name: layer_rank for name, layer_rank in ranks.items() if layer_rank != rank}
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,  # the scale is in B
        "rank_pattern": differing,
        "alpha_pattern": differing,
        "target_modules": sorted(ranks),
        "modules_to_save": [_DECODER],
        "lora_bias": biased,
    }
    return config, tensors | decoder


def _plain_state(segmenter: Segmenter, method: Method, mode: MergeMode) -> dict[str, Tensor]:
    try:
        return sam_state_dict(segmenter)
    except ValueError as error:
        fit = mode != "calibrated" and "calibrated" in method.merge_modes
        instead = "--merge calibrated or --adapter-only" if fit else "--adapter-only"
        raise UsageError(
            f"{method.name} merged by {mode} keeps parts that a SAM checkpoint cannot hold; use {instead}"
        ) from error


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies, each of memory of its own: layers of one tuner may share a tensor, which safetensors does not write."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _metadata(run: Run) -> str:
    return json.dumps({"run": asdict(run)}, sort_keys=True)


def base_model(run: Run) -> str | None:
    """Name on the Hub of what the run started from; None for random weights and for a backbone that has none there."""
    return MODELS.get(run.backbone) if run.checkpoint else None


def code_to_load(run: Run, form: Form, out: str) -> str:
    """Python that loads the exported file ``out``. Capitals are what the reader fills in."""
    side, shape = run.rules["image_size"], backbone(run.backbone).shape
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
        return (
            "import numpy as np\nimport onnxruntime\n\n"
            f"rgb = np.zeros((1, 3, {side}, {side}), np.float32)  # in [0, 1]\n"
            f"outputs = onnxruntime.InferenceSession({out!r}).run(None, {{'images': rgb}})"
        )
    if run.backbone in REGISTRY and side == REGISTRY_SIZE:
        return (
            "from segment_anything import sam_model_registry\n\n"
            f"sam = sam_model_registry[{run.backbone!r}](checkpoint={out!r})"
        )
    if shape.stem:
        return f"from mobile_sam import sam_model_registry\n\nsam = sam_model_registry['vit_t'](checkpoint={out!r})"
    if shape.upscaled:
        sizes = [[side // shape.patch * scale] * 2 for scale in (4, 2, 1)]
        return (
            "from transformers import Sam3TrackerConfig, Sam3TrackerModel\n\n"
            f"config = Sam3TrackerConfig(vision_config={{'scale_factors': [4.0, 2.0, 1.0], 'backbone_feature_sizes': {sizes}}})\n"
            f"config.vision_config.image_size = config.prompt_encoder_config.image_size = {side}\n"
            f"# FOLDER holds {out} as model.safetensors\n"
            "model = Sam3TrackerModel.from_pretrained('FOLDER', config=config)"
        )
    if shape.pyramid and run.checkpoint:
        return f"from sam2.build_sam import build_sam2\n\nmodel = build_sam2('CONFIG', {out!r})"
    return (
        "import torch\nfrom harness.models.original_sam import plain_sam  # pip install sam-peft-harness\n\n"
        f"sam = plain_sam({run.backbone!r}, image_size={side})\n"
        f"sam.load_state_dict(torch.load({out!r}, weights_only=True))"
    )
