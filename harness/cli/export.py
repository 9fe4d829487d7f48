"""``sam-peft export``: write a run's model as a merged checkpoint, adapter, peft or ONNX."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.cli.command import (
    CommandParser,
    add_plugins,
    add_results,
    add_run,
    command,
    load_own_plugins,
    require_effect,
    results_of,
    verb,
)
from harness.cli.find import find_run
from harness.dispatch.sweeps import sweep_of
from harness.models.catalog import backbone, resolve_backbone
from harness.models.published import LICENCES, Form, card_of, weights_file
from harness.planning.understand import checkpoint_of, data_folder
from harness.registry import BENCHMARKS, add_own_of
from harness.report.model_card import model_card
from harness.settings import load_settings
from harness.system.errors import UsageError
from harness.system.progress import spinner
from harness.system.text import printable_line


def parser() -> CommandParser:
    p = command("export", __doc__)
    add_run(p)
    p.add_argument(
        "--adopt",
        type=Path,
        metavar="DIR",
        help="in place of --run: fold an adapter that peft trained on transformers' SamModel into --checkpoint",
    )
    p.add_argument("--backbone", default="vit_b", metavar="NAME", help="the backbone of --adopt (default: vit_b)")
    p.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="FILE",
        help="a file .pth (.safetensors of SAM 3); .safetensors with --adapter-only; .onnx with --onnx; a folder with --peft",
    )
    p.add_argument(
        "--merge",
        choices=("exact", "conv", "calibrated"),
        help="exact folds what is linear (default); calibrated also fits the rest by least squares on training images; conv "
        "keeps a convolution, so it gives no SAM checkpoint",
    )
    form = p.add_mutually_exclusive_group()
    form.add_argument("--adapter-only", action="store_true", help="write the trained tensors as safetensors, unmerged")
    form.add_argument(
        "--peft",
        action="store_true",
        help="write an adapter for Hugging Face's PEFT: of low-rank methods, and of cells with --merge calibrated",
    )
    form.add_argument(
        "--onnx",
        action="store_true",
        help="write an ONNX graph, merged as far as possible, and check it with onnxruntime",
    )
    add_results(p)
    p.add_argument("--checkpoint", type=Path, metavar="FILE", help="the pretrained weights that the run started from")
    p.add_argument(
        "--data", type=Path, metavar="DIR", help="the benchmark's folder or its parent, for --merge calibrated"
    )
    add_plugins(p, help="a plug-in that the run used")
    return p


@verb
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    form: Form = (
        "adapter" if arguments.adapter_only else "peft" if arguments.peft else "onnx" if arguments.onnx else "sam"
    )
    if arguments.adopt is not None:
        return _adopt(arguments, form)
    if arguments.run is None:
        raise UsageError("give a run with --run KEY, or an adapter of Hugging Face peft with --adopt DIR")
    if form == "adapter":
        require_effect(arguments, "merge", without="with --adapter-only, which writes the tensors unmerged")
    load_own_plugins(arguments)
    results, settings = results_of(arguments), load_settings()
    run = find_run(results, arguments.run)
    of_sam_3 = form == "sam" and backbone(run.backbone).shape.upscaled
    require_out(arguments.out, ".safetensors" if of_sam_3 else SUFFIXES[form])
    record = RecordStore(results).summary(run.key)
    assert record is not None
    add_own_of(run.benchmark, run.rules)

    with spinner() as report:
        report("loading torch")
        from harness.experiment.exporting import base_model, code_to_load, export
        from harness.experiment.trained import of_results

        calibrated = arguments.merge == "calibrated" and form != "adapter"
        merge: Any = arguments.merge or "exact"
        usage = code_to_load(run, form, arguments.out.name)
        line, *_ = export(
            of_results(results, run.key),
            out=arguments.out,
            form=form,
            merge=merge,
            checkpoint=checkpoint_of(run, settings, given=arguments.checkpoint),
            data=data_folder(run, settings if calibrated else None, given=arguments.data, results=results),
            card=_card(record, results, form, merge=merge, base=base_model(run), usage=usage),
            progress=report,
        )
    print(f"{arguments.out}: {line}")
    return 0


def _adopt(arguments: argparse.Namespace, form: Form) -> int:
    """Write a whole SAM from an adapter that was trained elsewhere."""
    if arguments.run is not None or form != "sam" or arguments.merge:
        raise UsageError(
            "--adopt writes a whole SAM checkpoint from an adapter and --checkpoint; leave out --run, --merge and other forms"
        )
    require_out(arguments.out, ".safetensors")
    if arguments.checkpoint is None:
        raise UsageError(
            "--adopt folds an adapter into the weights that it was trained on; give them with --checkpoint FILE"
        )
    with spinner() as report:
        report("loading torch and peft")
        from harness.experiment.adopting import write_merged

        name = resolve_backbone(arguments.backbone)
        checkpoint = weights_file(arguments.checkpoint, name)
        changed = write_merged(arguments.out, arguments.adopt, backbone=name, checkpoint=checkpoint)
    print(f"{arguments.out}: {changed} layers changed; score it with --methods zeroshot --checkpoint {arguments.out}")
    return 0


SUFFIXES: dict[Form, str] = {"sam": ".pth", "adapter": ".safetensors", "onnx": ".onnx", "peft": ""}
"""File endings; SAM 3 is written as transformers reads it, and an adapter for PEFT is a folder."""
FORMS: dict[Form, str] = {
    "sam": "a whole SAM with the method merged into it",
    "adapter": "the trained tensors alone",
    "peft": "an adapter for Hugging Face's PEFT",
    "onnx": "an ONNX graph, the method merged into it as far as it can be",
}


def _card(record: Record, results: Path, form: Form, *, merge: str, base: str | None, usage: str) -> str:
    run = record.run
    benchmark = BENCHMARKS.get(run.benchmark)
    folded = "" if form == "adapter" or (form == "peft" and merge == "exact") else merge
    return model_card(
        record,
        base=base,
        licence=LICENCES.get(run.backbone) if run.checkpoint else None,
        form=FORMS[form],
        usage=usage,
        merge=folded,
        terms=benchmark.terms,
        source=benchmark.source,
        typed=printable_line(sweep.command) if (sweep := sweep_of(results, run.key)) else "",
    )


def require_out(out: Path, suffix: str) -> None:
    """Refuse a path that could not be written, before anything is loaded; ``suffix`` is empty for a folder. Raises UsageError: another
    ending, no such folder, or a file or its model card that exists."""
    if suffix and out.suffix != suffix:
        raise UsageError(f"--out {out}: the name must end in {suffix}")
    if not out.parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.parent}; make it first, or correct the path")
    if not suffix and out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; --peft writes a folder")
    card = card_of(out) if suffix else out  # a folder holds its own
    for path in (out, card):
        if path.exists() and (suffix or any(path.iterdir())):
            raise UsageError(f"--out {out}: {path} exists; choose another name")
