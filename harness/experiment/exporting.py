"""The trained model of a finished run as a file; read `export` downwards.

The file is a plain SAM checkpoint, the trained tensors alone, an adapter of Hugging Face's PEFT (`harness.experiment.exporting_peft`), or
ONNX (`harness.experiment.exporting_onnx`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from harness.archive.schema import Run
from harness.experiment.building import first_images, open_data
from harness.experiment.exporting_onnx import OPSET, Graph, require_onnx, write_onnx
from harness.experiment.exporting_peft import CONFIG, MERGED, TENSORS, peft_adapter, require_in_transformers
from harness.experiment.trained import METADATA, Trained
from harness.methods.base import MergeMode, MergeReport, Method
from harness.models.catalog import backbone
from harness.models.checkpoint import read_tensors
from harness.models.original_sam import sam_state_dict, unfit_for_sam
from harness.models.published import CARD, MODELS, Form, card_of
from harness.models.sam2 import is_memory
from harness.models.segmenter import SAMSegmenter, Segmenter
from harness.planning.data import benchmark_of
from harness.protocols.load import from_rules
from harness.registry import METHODS
from harness.system.errors import UsageError, writing_to
from harness.system.files import new_folder, replace_atomically, write_atomically
from harness.training.feeding import normalise

SAFETENSORS = ".safetensors"
HELD_OUT = 4
"""Number of images on which a merge's deviation is measured."""
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
        out: the file to write, a ``.safetensors`` of SAM 3; of ``peft`` the folder.
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
    _require_inputs(run, form, merge, data)
    progress("loading the model")
    segmenter, method = trained.segmenter(checkpoint)
    if form in ("sam", "peft"):
        _require_sam(segmenter, run, form=form)
    progress("reading images")
    train, held_out, kind = calibration_images(run, data)
    line, note = f"{run.label} on {run.benchmark}, seed {run.seed}", ""
    if form == "peft":
        progress("fitting low-rank updates")
        note = _write_peft(segmenter, method, run, train if merge == "calibrated" else (), out=out, card=card)
    # Full fine-tuning and decoder-only have nothing to merge; ONNX takes a method without an exact merge as it is.
    as_it_is = form == "onnx" and merge == "exact" and "exact" not in method.merge_modes
    if form != "adapter" and method.merge_modes and not as_it_is:
        progress(f"merging ({merge})")
        report = method.merge(merge, calibration=train, held_out=list(held_out.split(BATCH)))
        line += _merged(report, form=form, images=f"{len(held_out)} {kind} images")
    progress("writing")
    if form == "sam":
        _write_sam(segmenter, method, merge, out=out, checkpoint=checkpoint)
    elif form == "adapter":
        with writing_to(f"--out {out}"):
            write_atomically(out, save(_on_cpu(trained.state), {METADATA: _metadata(run)}))
    elif form == "onnx":
        rules = from_rules(run.rules)
        graph = Graph(segmenter, rules.pixels, labels=rules.task == "classification").eval()
        difference = write_onnx(graph, out, images=held_out, metadata={METADATA: _metadata(run)})
        note = f"; onnxruntime differs by {difference:.1e} at most (relative, opset {OPSET})"
    if form != "peft" and card:  # after the file: a full disk leaves no card of a model that is not there
        path = card_of(out)
        with writing_to(f"{out} is written, its model card {path}", then="; export again under another name"):
            write_atomically(path, card)
    return line + note, segmenter, held_out


def calibration_images(run: Run, data: Path | None) -> tuple[list[Tensor], Tensor, str]:
    """Calibration batches of the training split; held-out images, normalised, and their kind: of the validation split, or
    random ones where there is no ``data``, which has no calibration batches either."""
    rules = from_rules(run.rules)
    if data is None:
        shape = HELD_OUT, 3, rules.image_size, rules.image_size
        return [], torch.randn(shape, generator=torch.Generator().manual_seed(0)), "random"
    opened = open_data(run, benchmark_of(run.benchmark, rules).locate(data))
    train, held_out = first_images(opened.train, rules.calibration_images), first_images(opened.val, HELD_OUT)
    return list(normalise(train, rules.pixels).split(BATCH)), normalise(held_out, rules.pixels), "validation"


def _require_inputs(run: Run, form: Form, merge: MergeMode, data: Path | None) -> None:
    """Raises UsageError: ``calibrated`` has no images; or, for a graph, ONNX is not installed, or the run's model takes prompts."""
    if merge == "calibrated" and form != "adapter" and data is None:
        raise UsageError("--merge calibrated fits on training images; give their folder with --data")
    if form != "onnx":
        return
    require_onnx()
    if (prompt := from_rules(run.rules).prompt) != "none":
        raise UsageError(
            f"run {run.key} was trained with prompts ({prompt}), and a graph takes images alone; write a whole SAM, which "
            "segment_anything's scripts/export_onnx_model.py exports with its prompts"
        )


def _require_sam(segmenter: Segmenter, run: Run, *, form: Form) -> None:
    """Before the work of a merge, refuse a model that cannot become a SAM checkpoint or an adapter of one."""
    if reason := unfit_for_sam(segmenter):
        raise UsageError(f"run {run.key}: {reason}; or use --adapter-only")
    if form == "peft":
        assert isinstance(segmenter, SAMSegmenter)
        require_in_transformers(segmenter, run.backbone)


def _merged(report: MergeReport, *, form: Form, images: str) -> str:
    """What a merge did, and what it cost on ``images``."""
    left = f", {len(report.left)} kept as they are" if report.left and form == "onnx" else ""
    how = f"a merge ({report.mode}) folds" if form == "peft" else f"merged by {report.mode}, which folds"
    return (
        f", {how} {len(report.folded)} sites{left}, mask logits differ from the unmerged model's "
        f"by {report.relative_deviation:.1e} (relative, on {images})"
    )


def _write_sam(segmenter: Segmenter, method: Method, mode: MergeMode, *, out: Path, checkpoint: Path | None) -> None:
    try:
        state = sam_state_dict(segmenter)
    except ValueError as error:
        fit = mode != "calibrated" and "calibrated" in method.merge_modes
        instead = "--merge calibrated or --adapter-only" if fit else "--adapter-only"
        raise UsageError(
            f"{method.name} merged by {mode} keeps parts that a SAM checkpoint cannot hold; use {instead}"
        ) from error
    sam_2 = bool(segmenter.encoder.shape.pyramid)
    if sam_2 and checkpoint is not None:
        # SAM 2's memory: no image passes it, and Meta's own code loads no file without it.
        state |= {name: tensor for name, tensor in read_tensors(checkpoint).items() if is_memory(name)}
    state = _on_cpu(state)
    with writing_to(f"--out {out}"):
        if out.suffix == SAFETENSORS:
            write_atomically(out, save(state, {"format": "pt"}))
        else:
            replace_atomically(out, lambda path: torch.save({"model": state} if sam_2 else state, path))


_NO_MERGE = "peft loads it but cannot merge it next to a saved mask decoder; for merged weights leave --peft out"


def _write_peft(
    segmenter: Segmenter, method: Method, run: Run, calibration: Sequence[Tensor], *, out: Path, card: str
) -> str:
    """Write the folder; returns a note on it."""
    assert isinstance(segmenter, SAMSegmenter)
    config, tensors = peft_adapter(segmenter, method, calibration, base=base_model(run))
    with writing_to(f"--out {out}"), new_folder(out) as new:
        (new / TENSORS).write_bytes(save(_on_cpu(tensors), {"format": "pt", METADATA: _metadata(run)}))
        (new / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        limit = "" if config["peft_type"] in MERGED else _NO_MERGE
        (new / CARD).write_text(card + (f"\nNote: {limit}.\n" if limit else ""), encoding="utf-8")
    return f"; {limit}" if limit else ""


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies, each with its own memory: layers of one tuner may share a tensor, which safetensors refuses."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _metadata(run: Run) -> str:
    return json.dumps({"run": asdict(run)}, sort_keys=True)


def base_model(run: Run) -> str | None:
    """Name on the Hub of the model that the run started from; None for random weights and for a backbone that has none there."""
    return MODELS.get(run.backbone) if run.checkpoint else None


def code_to_load(run: Run, form: Form, out: str) -> str:
    """Python that loads the exported file ``out``. Capitals are what the reader fills in."""
    side, base = run.rules["image_size"], base_model(run) or "WEIGHTS"
    if form == "adapter":
        start = ', checkpoint="FILE"' if run.checkpoint else ""
        lines = ["from harness.experiment.trained import load_adapter  # pip install sam-peft-harness", ""]
        if not METHODS.is_fixed(run.method):
            lines[1:1] = ["from pathlib import Path", "from harness.registry import load_plugin"]
            lines.append('load_plugin(Path("FILE.py"))')
        return "\n".join([*lines, f"segmenter, method = load_adapter({out!r}{start})"])
    if form == "onnx":
        return (
            "import numpy as np\nimport onnxruntime\n\n"
            f"rgb = np.zeros((1, 3, {side}, {side}), np.float32)  # in [0, 1]\n"
            f"outputs = onnxruntime.InferenceSession({out!r}).run(None, {{'images': rgb}})"
        )
    if form == "sam":
        if run.backbone in REGISTRY and side == REGISTRY_SIZE:
            return (
                "from segment_anything import sam_model_registry\n\n"
                f"sam = sam_model_registry[{run.backbone!r}](checkpoint={out!r})"
            )
        if backbone(run.backbone).shape.upscaled:
            return f"{_code_of_tracker(run, 'FOLDER')}  # FOLDER holds {out} as model.safetensors"
        return (
            "from pathlib import Path\nfrom harness.models.build import build_segmenter  # pip install sam-peft-harness\n\n"
            f"sam = build_segmenter({run.backbone!r}, task='binary', image_size={side}, checkpoint=Path({out!r}))"
        )
    if backbone(run.backbone).shape.upscaled:
        model = _code_of_tracker(run, base)
    else:
        model = (
            "from transformers import SamModel\n\n"
            "# of a method peft/NAME on q, k and v: give the model to harness.methods.peft.split first\n"
            f"model = SamModel.from_pretrained({base!r})"
        )
    return f"from peft import PeftModel\n{model}\nmodel = PeftModel.from_pretrained(model, {out!r})"


def _code_of_tracker(run: Run, weights: str) -> str:
    """Python that loads SAM 3 of transformers at the run's image size."""
    side, patch = run.rules["image_size"], backbone(run.backbone).shape.patch
    sizes = [[side // patch * scale] * 2 for scale in (4, 2, 1)]
    return (
        "from transformers import Sam3TrackerConfig, Sam3TrackerModel\n\n"
        f"config = Sam3TrackerConfig(vision_config={{'scale_factors': [4.0, 2.0, 1.0], 'backbone_feature_sizes': {sizes}}})\n"
        f"config.vision_config.image_size = config.prompt_encoder_config.image_size = {side}\n"
        f"model = Sam3TrackerModel.from_pretrained({weights!r}, config=config)"
    )
