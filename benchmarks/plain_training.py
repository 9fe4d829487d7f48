"""What a user writes who has no harness: LoRA on SAM or MobileSAM, as scripts of their own. `benchmarks.end_to_end` times them.

``python -m benchmarks.plain_training trainer|official --data DIR --out FOLDER …``; nothing of the harness is imported here.

- ``trainer``: transformers' ``Trainer``, ``SamModel`` and ``SamImageProcessor`` with peft's LoRA on ``qkv`` and the mask decoder as
  ``modules_to_save``. Images are read and resized each time they are used; masks and loss have the decoder's size, a quarter of the
  image's side, as in the notebook that the documentation of SAM links to. No prompt.
- ``official``: the modules of github.com/ChaoningZhang/MobileSAM with two linear layers a block, its own resizing and padding, its
  decoder called for one image after the other, in a loop over batches. Masks and loss have the image's size.

Both: AdamW at a constant rate, gradients clipped at 1, BCE + Dice, a horizontal flip half of the time, two validations (half-way and at
the end) by the IoU of an image, the better state kept on disk and tested, the result as JSON. Random weights, of
``official`` those of ``--checkpoint`` where it is given.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

RANK, SCALE = 3, 32 / 3
STD = 0.02
"""Of random weights. transformers' default for a SAM, 1e-10, makes denormal numbers of them: a step of ViT-B at 512 px in bf16 then takes
four times as long (18 s of processor time instead of 4.4), which no training from a checkpoint does."""
SHAPES: dict[str, dict[str, Any]] = {
    "vit_b": {},  # SamVisionConfig's own
    "tiny": {
        "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "mlp_dim": 256, "window_size": 3,
        "global_attn_indexes": [1, 3],
    },
}  # fmt: skip


class AnySize(nn.Module):
    """MobileSAM's encoder at any size; its own forward pass knows 1024 pixels alone.

    Args:
        encoder: its own.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.blocks = [block for layer in encoder.layers[1:] for block in layer.blocks]

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.encoder.patch_embed(images)
        for layer in self.encoder.layers:
            tokens = layer(tokens)
        side = images.shape[-1] // 16
        return self.encoder.neck(tokens.view(len(images), side, side, -1).permute(0, 3, 1, 2))


def own_sam(checkout: Path, *, image_size: int) -> Any:
    """MobileSAM's ``Sam`` from its own builder, its encoder made for ``image_size``."""
    sys.path.insert(0, str(checkout))
    try:
        with warnings.catch_warnings(action="ignore"):  # of old imports from timm, and of names that timm has too
            from mobile_sam import sam_model_registry
    finally:
        sys.path.remove(str(checkout))
    sam = sam_model_registry["vit_t"]()
    if image_size != 1024:
        side = image_size // 16
        sam.image_encoder = type(sam.image_encoder)(
            img_size=image_size,
            embed_dims=[64, 128, 160, 320],
            depths=[2, 2, 6, 2],
            num_heads=[2, 4, 5, 10],
            window_sizes=[7, 7, 14, 7],
            drop_path_rate=0.0,
        )
        sam.image_encoder.img_size = image_size
        sam.prompt_encoder.image_embedding_size = (side, side)
        sam.prompt_encoder.input_image_size = (image_size, image_size)
    return sam


class _LoRA(nn.Module):
    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, RANK, bias=False)
        self.up = nn.Linear(RANK, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.base(tokens) + SCALE * self.up(self.down(tokens))


Pair = tuple[Image.Image, np.ndarray]


class Folder(torch.utils.data.Dataset[Any]):
    """Kvasir-SEG's pairs of a split: its own lists where it has them, else by name.

    Args:
        root: holds ``images`` and ``masks``.
        split: ``train``, ``val`` or ``test``.
        count: at most so many.
        prepare: an image and its mask (H, W bool) to what the model takes.
    """

    def __init__(self, root: Path, split: str, count: int, prepare: Callable[[Pair], Any]) -> None:
        listed = root / "splits" / f"{split}.txt"
        if listed.is_file():
            names = listed.read_text(encoding="utf-8").split()
        else:
            everything = sorted(path.stem for path in (root / "images").iterdir())
            names = everything[{"train": 0, "val": 1, "test": 2}[split] :: 3]
        self.paths = [(_only(root / "images", name), _only(root / "masks", name)) for name in names[:count]]
        self.prepare, self.flips = prepare, split == "train"

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        image, mask = (Image.open(path) for path in self.paths[index])
        picture, truth = image.convert("RGB"), np.asarray(mask.convert("L")) > 127
        if self.flips and random.random() < 0.5:
            picture, truth = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT), truth[:, ::-1].copy()
        return self.prepare((picture, truth))


def _only(folder: Path, stem: str) -> Path:
    (path,) = folder.glob(f"{stem}.*")
    return path


def loss_of(logits: Tensor, truth: Tensor) -> Tensor:
    """BCE + Dice of (B, 1, h, w)."""
    shares = logits.sigmoid()
    overlap = 2 * (shares * truth).sum((1, 2, 3)) + 1
    dice = 1 - overlap / (shares.sum((1, 2, 3)) + truth.sum((1, 2, 3)) + 1)
    return nn.functional.binary_cross_entropy_with_logits(logits, truth) + dice.mean()


def overlap(logits: Any, truth: Any) -> float:
    """Mean IoU of images."""
    predicted, foreground = logits > 0, truth > 0.5
    axes = tuple(range(1, predicted.ndim))
    both, either = (predicted & foreground).sum(axes), (predicted | foreground).sum(axes)
    return float((both / np.maximum(either, 1)).mean())


def note_first_update(folder: Path) -> None:
    """Write down when the first update was made."""
    if not (folder / "first").exists():
        (folder / "first").write_text(str(time.time()), encoding="utf-8")


def trainer(options: argparse.Namespace) -> dict[str, Any]:
    sys.modules.setdefault("datasets", None)  # type: ignore[arg-type]  # this clone's folder is not Hugging Face's package
    from peft import LoraConfig, get_peft_model
    from transformers import (
        SamConfig,
        SamImageProcessor,
        SamModel,
        SamPromptEncoderConfig,
        SamVisionConfig,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    size, side = options.image_size, options.image_size // 4
    config = SamConfig(
        vision_config=SamVisionConfig(image_size=size, initializer_range=STD, **SHAPES[options.backbone]),
        prompt_encoder_config=SamPromptEncoderConfig(image_size=size),
        initializer_range=STD,
    )
    lora = LoraConfig(r=RANK, lora_alpha=round(RANK * SCALE), target_modules=["qkv"], modules_to_save=["mask_decoder"])
    model: Any = get_peft_model(SamModel(config), lora)
    processor: Any = SamImageProcessor(
        size={"longest_edge": size}, pad_size={"height": size, "width": size},
        mask_size={"longest_edge": side}, mask_pad_size={"height": side, "width": side},
    )  # fmt: skip

    def prepare(pair: Pair) -> dict[str, Tensor]:
        inputs = processor(images=pair[0], segmentation_maps=pair[1].astype(np.uint8), return_tensors="pt")
        return {"pixel_values": inputs["pixel_values"][0], "labels": inputs["labels"].reshape(1, side, side).float()}

    class Own(Trainer):
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: Any = None, num_items_in_batch: Any = None
        ) -> Any:
            given = dict(inputs)
            truth = given.pop("labels")
            masks = model(**given, multimask_output=False).pred_masks[:, 0].float()
            loss = loss_of(masks, truth)
            return (loss, {"loss": loss, "masks": masks}) if return_outputs else loss

    class First(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            note_first_update(options.out)

    arguments = TrainingArguments(
        output_dir=str(options.out / "trainer"), max_steps=options.updates, per_device_train_batch_size=options.batch,
        per_device_eval_batch_size=4, learning_rate=options.lr, lr_scheduler_type="constant", weight_decay=1e-4,
        max_grad_norm=1.0, bf16=options.precision == "bf16", use_cpu=True, eval_strategy="steps",
        eval_steps=options.updates // 2, save_strategy="steps", save_steps=options.updates // 2, save_total_limit=2,
        load_best_model_at_end=True, metric_for_best_model="iou", greater_is_better=True, remove_unused_columns=False,
        label_names=["labels"], report_to=[], disable_tqdm=True, seed=0,
    )  # fmt: skip
    made = Own(
        model=model,
        args=arguments,
        train_dataset=options.split("train", prepare),
        eval_dataset=options.split("val", prepare),
        compute_metrics=lambda prediction: {"iou": overlap(prediction.predictions, prediction.label_ids)},
        callbacks=[First()],
    )
    made.train()
    model.save_pretrained(options.out / "adapter")
    return {"tests": [made.predict(options.split("test", prepare)).metrics for _ in range(options.tests)]}


def official(options: argparse.Namespace) -> dict[str, Any]:
    sam = own_sam(options.checkout, image_size=options.image_size)
    from mobile_sam.utils.transforms import ResizeLongestSide

    if options.checkpoint:
        from safetensors.torch import load_file

        keys = sam.load_state_dict(
            {name: tensor.float() for name, tensor in load_file(options.checkpoint).items()}, strict=False
        )
        left = [name for name in keys.missing_keys if "head." not in name and not name.endswith("num_batches_tracked")]
        if left or keys.unexpected_keys:  # but for the classifier, which no mask needs
            raise SystemExit(f"{options.checkpoint}: {[*left, *keys.unexpected_keys][:3]} do not fit MobileSAM")

    encoder = AnySize(sam.image_encoder)
    sam.requires_grad_(False)
    sam.mask_decoder.requires_grad_(True)
    for block in encoder.blocks:
        block.attn.qkv = _LoRA(block.attn.qkv)
    trained = {name: parameter for name, parameter in sam.named_parameters() if parameter.requires_grad}
    optimiser = torch.optim.AdamW(trained.values(), lr=options.lr, weight_decay=1e-4)
    resize, size = ResizeLongestSide(options.image_size), options.image_size
    sam.image_encoder.img_size = size  # what its preprocessing pads to
    sam.eval()  # statistics of batch norms are the checkpoint's

    def prepare(pair: Pair) -> tuple[Tensor, Tensor]:
        image = torch.as_tensor(resize.apply_image(np.asarray(pair[0]))).permute(2, 0, 1)
        mask = torch.as_tensor(pair[1])[None, None].float()
        return sam.preprocess(image.float()), nn.functional.interpolate(mask, (size, size))[0]

    def predicted(images: Tensor) -> Tensor:
        half = options.precision == "bf16"
        with torch.autocast("cpu", dtype=torch.bfloat16) if half else contextlib.nullcontext():
            embeddings = encoder(images)
            sparse, dense = sam.prompt_encoder(points=None, boxes=None, masks=None)
            place = sam.prompt_encoder.get_dense_pe()
            low = [sam.mask_decoder(embedding[None], place, sparse, dense, False)[0] for embedding in embeddings]
        return nn.functional.interpolate(torch.cat(low).float(), (size, size), mode="bilinear", align_corners=False)

    def scored(split: str) -> float:
        loader = torch.utils.data.DataLoader(options.split(split, prepare), batch_size=4)
        values = []
        with torch.no_grad():
            for images, masks in loader:
                logits = predicted(images).numpy()
                values += [overlap(logits[[place]], masks[[place]].numpy()) for place in range(len(images))]
        return float(np.mean(values))

    loader = torch.utils.data.DataLoader(options.split("train", prepare), batch_size=options.batch, shuffle=True)
    done, best, file = 0, -1.0, options.out / "best.pt"
    while done < options.updates:
        for images, masks in loader:
            loss_of(predicted(images), masks).backward()
            torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            done += 1
            note_first_update(options.out)
            if done % (options.updates // 2) == 0 and (score := scored("val")) > best:
                best = score
                torch.save({name: parameter.detach() for name, parameter in trained.items()}, file)
            if done == options.updates:
                break
    sam.load_state_dict(torch.load(file, weights_only=True), strict=False)
    return {"val_iou": best, "test_iou": [scored("test") for _ in range(options.tests)]}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("script", choices=("trainer", "official"))
    parser.add_argument("--data", type=Path, required=True, help="holds Kvasir-SEG")
    parser.add_argument("--out", type=Path, required=True, help="an empty folder")
    parser.add_argument("--checkout", type=Path, help="of MobileSAM, for official")
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="safetensors with MobileSAM's names, for official"
    )
    parser.add_argument("--backbone", default="vit_b", help="of trainer: vit_b or tiny")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--tests", type=int, default=1, help="as often; who tests a second state as well does it twice")
    parser.add_argument("--lr", type=float, default=1e-4)
    for name, count in (("image-size", 1024), ("batch", 1), ("updates", 8), ("images", 200), ("val", 20), ("test", 40)):
        parser.add_argument(f"--{name}", type=int, default=count)
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    random.seed(0)
    counts = {"train": options.images, "val": options.val, "test": options.test}
    options.split = lambda name, prepare: Folder(options.data / "Kvasir-SEG", name, counts[name], prepare)
    result = (trainer if options.script == "trainer" else official)(options)
    (options.out / "result.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
