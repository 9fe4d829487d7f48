"""``sam-peft predict``: write masks or labels of your own images, by a run or an adapter."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from harness.cli.command import add_plugins, add_results, add_run, command, load_own_plugins, results_of, verb
from harness.cli.find import find_run
from harness.models.catalog import resolve_backbone
from harness.models.published import require_file_or_word, weights_file
from harness.settings import load_settings, named_table
from harness.system.errors import UsageError
from harness.system.streams import bars, stages


def parser() -> argparse.ArgumentParser:
    p = command(
        "predict",
        __doc__,
        epilog="Masks are PNG at each image's own size: 0 and 255, or class indices with a palette. A classifier writes labels.csv with "
        "each image's label and probabilities. sam-peft data score scores masks.",
    )
    model = p.add_mutually_exclusive_group(required=True)
    add_run(model)
    model.add_argument(
        "--adapter",
        type=Path,
        metavar="PATH",
        help="a file of sam-peft export --adapter-only, or the folder of an adapter that peft trained on transformers' SamModel",
    )
    p.add_argument("--backbone", metavar="NAME", help="the backbone of an adapter's folder (default: vit_b)")
    p.add_argument("--images", required=True, nargs="+", type=Path, metavar="PATH", help="files, or folders of them")
    p.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the masks, empty or new")
    p.add_argument("--overlay", action="store_true", help="also write DIR/overlays: contours over the image")
    p.add_argument("--probabilities", action="store_true", help="also write DIR/probabilities: .npy of float32")
    p.add_argument("--batch", type=int, default=4, metavar="N", help="images a forward pass (default: 4)")
    add_results(p, help="results folder of --run (default: the setting, else runs)")
    p.add_argument("--checkpoint", type=Path, metavar="FILE", help="the pretrained weights that the run started from")
    add_plugins(p, help="a plug-in that the run used")
    return p


@verb
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.batch < 1:
        raise UsageError(f"--batch {arguments.batch}: give 1 or more")
    if arguments.results and arguments.adapter:
        raise UsageError("--results is the folder of --run; leave it out with --adapter")
    for path in arguments.images:
        if not path.exists():
            raise UsageError(f"--images {path}: no such file or folder")
    require_file_or_word(arguments.checkpoint)
    if arguments.backbone and not (arguments.adapter and arguments.adapter.is_dir()):
        raise UsageError("--backbone is for an adapter's folder; a run and an exported adapter name theirs")
    if arguments.adapter and not arguments.adapter.exists():
        raise UsageError(
            f"--adapter {arguments.adapter}: no such file or folder; give what sam-peft export --adapter-only or peft wrote"
        )
    load_own_plugins(arguments)
    if arguments.run is not None:
        arguments.run = find_run(results_of(arguments), arguments.run).key

    with stages() as report:
        report("loading torch and the run")
        from harness.experiment.environment import own_device
        from harness.experiment.predicting import predict

        request = request_of(arguments)
    with bars() as move:
        predict(request, device=own_device(), progress=lambda done: move("predicting", done, len(request.images)))
    what = "labels" if request.trained.task == "classification" else "masks"
    by = f"run {request.trained.run.key}" if arguments.run or arguments.adapter.is_file() else str(arguments.adapter)
    print(f"{request.out}: {what} of {len(request.images)} images by {by}")
    return 0


def request_of(arguments: argparse.Namespace) -> Any:
    """The request; torch is loaded here."""
    from harness.experiment.predicting import Predict, find_images
    from harness.experiment.trained import Trained, adapter, of_results
    from harness.planning.understand import checkpoint_of

    results, settings = results_of(arguments), load_settings()
    if arguments.adapter and arguments.adapter.is_dir():
        from harness.experiment.adopting import adopted

        backbone = resolve_backbone(arguments.backbone or "vit_b")
        weights = arguments.checkpoint or named_table(settings, "checkpoints", resolve_backbone).get(backbone)
        if weights is None:
            raise UsageError(
                f"--adapter {arguments.adapter} is folded into the weights that it was trained on; give them with --checkpoint FILE"
            )
        checkpoint: Path | None
        checkpoint = file = weights_file(weights, backbone)
        trained: Trained = adopted(arguments.adapter, backbone=backbone, checkpoint=file)
    else:
        trained = adapter(arguments.adapter) if arguments.adapter else of_results(results, arguments.run)
        checkpoint = checkpoint_of(trained.run, settings, given=arguments.checkpoint)
    trained.require_checkpoint(checkpoint)
    return Predict(
        trained=trained,
        checkpoint=checkpoint,
        images=find_images(arguments.images),
        out=arguments.out,
        overlay=arguments.overlay,
        probabilities=arguments.probabilities,
        batch=arguments.batch,
    )
