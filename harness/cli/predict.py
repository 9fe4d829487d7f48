"""``sam-peft predict``: write masks or labels of your own images, by a run, an adapter, or a published SAM with boxes and points."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.cli.command import add_plugins, add_results, add_run, command, load_own_plugins, results_of, verb
from harness.cli.find import find_run
from harness.experiment.pointed import Pointed, given_on_command_line, read_prompts
from harness.models.catalog import backbone, resolve_backbone
from harness.models.published import weights_file
from harness.planning.understand import checkpoint_of
from harness.settings import load_settings, named_table
from harness.system.errors import UsageError
from harness.system.progress import bars, spinner


def parser() -> argparse.ArgumentParser:
    p = command(
        "predict",
        __doc__,
        epilog="Masks are PNG at each image's own size: 0 and 255, or class indices with a palette. A classifier writes labels.csv with "
        "each image's label and probabilities. sam-peft data score scores masks. Without --run and --adapter, --backbone and --checkpoint "
        "name a published SAM, which needs boxes or points. Repeating the command writes the masks that are missing.",
    )
    model = p.add_mutually_exclusive_group()
    add_run(model)
    model.add_argument(
        "--adapter",
        type=Path,
        metavar="PATH",
        help="a file of sam-peft export --adapter-only, or the folder of an adapter that peft trained on transformers' SamModel",
    )
    p.add_argument(
        "--backbone",
        metavar="NAME",
        help="backbone of an adapter's folder (default: vit_b), or of a published SAM without a run",
    )
    p.add_argument("--images", required=True, nargs="+", type=Path, metavar="PATH", help="files, or folders of them")
    p.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="DIR",
        help="folder of the masks: empty, new, or begun by this command",
    )
    pointed = p.add_argument_group(
        "objects", "pixels of the image from its upper left; each object has a mask in DIR/objects too"
    )
    pointed.add_argument(
        "--box",
        action="append",
        default=[],
        metavar="X0,Y0,X1,Y1",
        help="a box around an object of the one image; repeatable",
    )
    pointed.add_argument(
        "--point",
        action="append",
        default=[],
        metavar="X,Y[,0]",
        help="a point on the one object, or with ,0 a point outside it; repeatable, also with one --box",
    )
    pointed.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="CSV (image,x0,y0,x1,y1,points) or JSON, one line per object of any of the images",
    )
    p.add_argument("--overlay", action="store_true", help="also write DIR/overlays: contours over the image")
    p.add_argument("--probabilities", action="store_true", help="also write DIR/probabilities: .npy of float32")
    add_results(p, help="results folder of --run (default: the setting, else runs)")
    p.add_argument("--checkpoint", type=Path, metavar="FILE", help="the pretrained weights that the run started from")
    add_plugins(p, help="a plug-in that the run used")
    return p


@verb
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.results and arguments.run is None:
        raise UsageError("--results is the folder of --run; leave it out with --adapter and --backbone")
    for path in arguments.images:
        if not path.exists():
            raise UsageError(f"--images {path}: no such file or folder")
    objects = given_on_command_line(arguments.box, arguments.point)
    _require_model(arguments, pointed=bool(objects or arguments.prompts))
    if arguments.adapter and not arguments.adapter.exists():
        raise UsageError(
            f"--adapter {arguments.adapter}: no such file or folder; give what sam-peft export --adapter-only or peft wrote"
        )
    load_own_plugins(arguments)
    if arguments.run is not None:
        arguments.run = find_run(results_of(arguments), arguments.run).key

    with spinner() as report:
        report("loading torch and the run")
        from harness.experiment.environment import own_device

        prediction = prediction_of(arguments, objects)
    total = len(prediction.images)
    with bars() as move:
        there = prediction.run(device=own_device(), progress=lambda done: move("predicting", done, total))
    what = "labels" if prediction.trained.task == "classification" else "masks"
    of_run = arguments.run or (arguments.adapter and arguments.adapter.is_file())
    by = f"run {prediction.trained.run.key}" if of_run else str(arguments.adapter or arguments.backbone)
    before = f" ({there} already existed)" if there else ""
    print(f"{prediction.out}: {what} of {total - there} images by {by}{before}")
    return 0


def _require_model(arguments: argparse.Namespace, *, pointed: bool) -> None:
    """Raises UsageError: no model, or options that do not fit each other."""
    if arguments.prompts and (arguments.box or arguments.point):
        raise UsageError("--prompts FILE holds all objects; leave out --box and --point")
    if arguments.run is not None or arguments.adapter:
        if arguments.backbone and not (arguments.adapter and arguments.adapter.is_dir()):
            raise UsageError("--backbone is for an adapter's folder; a run and an exported adapter name theirs")
        return
    if not arguments.backbone:
        raise UsageError(
            "give --run KEY or --adapter PATH; or for a SAM without a run --backbone NAME, --checkpoint FILE and boxes or points"
        )
    if not pointed:
        raise UsageError("a SAM without a run needs to be shown its objects: give --box, --point or --prompts FILE")
    if (entry := backbone(arguments.backbone)).timm_model:
        raise UsageError(f"--backbone {entry.name} has no mask decoder of its own; train one, and give --run")


def prediction_of(arguments: argparse.Namespace, objects: Sequence[Pointed]) -> Any:
    """The `Prediction` that the command asks for; torch is loaded here."""
    from harness.experiment.predicting import Prediction, find_images

    images, prompts = find_images(arguments.images), {}
    if arguments.prompts:
        prompts = read_prompts(arguments.prompts, images)
    elif objects and len(images) != 1:
        raise UsageError(
            f"--box and --point are pixels of one image, and --images names {len(images)}; give --prompts FILE"
        )
    elif objects:
        prompts = {images[0]: tuple(objects)}
    trained, checkpoint = _model(arguments)
    trained.require_checkpoint(checkpoint)
    return Prediction(
        trained=trained,
        checkpoint=checkpoint,
        images=images,
        out=arguments.out,
        overlay=arguments.overlay,
        probabilities=arguments.probabilities,
        prompts=prompts,
    )


def _model(arguments: argparse.Namespace) -> tuple[Any, Path | None]:
    """The `Trained` model, and the weights that it started from."""
    from harness.experiment.trained import adapter, of_results, published_sam

    settings, folder = load_settings(), arguments.adapter
    if arguments.run is not None or (folder and folder.is_file()):
        trained = adapter(folder) if folder else of_results(results_of(arguments), arguments.run)
        return trained, checkpoint_of(trained.run, settings, given=arguments.checkpoint)
    name = resolve_backbone(arguments.backbone or "vit_b")
    weights = arguments.checkpoint or named_table(settings, "checkpoints", resolve_backbone).get(name)
    if weights is None and folder:
        raise UsageError(
            f"--adapter {folder} is folded into the weights that it was trained on; give them with --checkpoint FILE"
        )
    if weights is None:
        raise UsageError(f"--backbone {name} without a run: give its weights with --checkpoint FILE")
    file = weights_file(weights, name)
    if not folder:
        return published_sam(name, file), file
    from harness.experiment.adopting import Adopted, merged_adapter  # peft takes a second

    state, _ = merged_adapter(folder, backbone=name, checkpoint=file)
    return Adopted(run=published_sam(name, file, label=str(folder)).run, state=state), file
