"""``harness.run`` against the same run computed by hand: decoding by Pillow, a plain loop around torch's AdamW, scores by
PySODMetrics and NumPy. Only the fresh segmenter is the harness's; `tests/harness/models` and `tests/methods` have its oracles."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from harness.archive.parser import load_record
from harness.experiment.building import attached_segmenter, open_data
from harness.run import main

sod = pytest.importorskip("py_sod_metrics")

SIDE, EPOCHS, LR, DECAY, CLIP, BATCH = 64, 4, 1e-2, 1e-4, 1.0, 6
RULES = {"image_size": SIDE, "epochs": EPOCHS, "lr": LR, "weight_decay": DECAY, "clip": CLIP, "flip": 0.0}
LIMITS = {"batch_size": BATCH, "train_limit": BATCH, "val_limit": 3, "test_limit": 3}
MEAN, STD = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))


@dataclass(frozen=True, kw_only=True)
class ByHand:
    losses: list[float]
    scores: dict[str, dict[str, float]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    settings = [f"--set={name}={value}" for name, value in {**RULES, **LIMITS}.items()]
    words = ["--protocol", "demo", "--executor", "inline", "--methods", "lora", "--datasets", "kvasir"]
    assert main([*words, "--results", str(folder), *settings]) == 0
    return folder


@pytest.fixture(scope="module")
def record(results: Path) -> dict[str, Any]:
    (path,) = (results / "records").glob("*.json")
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def by_hand(results: Path) -> ByHand:
    (path,) = (results / "records").glob("*.json")
    run = load_record(path).run
    segmenter, _ = attached_segmenter(run, task="binary", num_classes=2, checkpoint=None)
    (stems,) = (results / "records").glob("*.images.csv")
    scored = [line.split(",")[:3] for line in stems.read_text(encoding="utf-8").splitlines()[1:]]
    (root,) = (path.parent for path in results.rglob("images") if (path.parent / "masks").is_dir())
    images, masks = ({path.stem: path for path in (root / name).glob("*.jpg")} for name in ("images", "masks"))
    assert images.keys() == masks.keys()
    test = sorted({stem for _, split, stem in scored if split == "test"})
    assert len(test) == 3

    # Which images these are is the split's affair (`tests/datasets`); that they make one batch makes their order none.
    trained = [pair.stem for pair in open_data(run, root).train.pairs]
    assert len(trained) == BATCH
    assert not set(trained) & set(test)
    inputs = torch.stack([network_input(images[stem]) for stem in trained])
    targets = torch.stack([torch.from_numpy(truth(masks[stem], size=SIDE)).float() for stem in trained])
    losses = fit(segmenter, inputs, targets)

    segmenter.eval()
    scores = {}
    for stem in test:
        mask = truth(masks[stem])
        with torch.no_grad():
            logits = segmenter(network_input(images[stem])[None]).masks
            full = F.interpolate(logits, size=(SIDE, SIDE), mode="bilinear", align_corners=False).sigmoid()
            native = F.interpolate(full.double(), size=mask.shape, mode="bilinear", align_corners=False)[0, 0].numpy()
        scores[stem] = measured(native, mask)
    return ByHand(losses=losses, scores=scores)


def network_input(path: Path) -> Tensor:
    with Image.open(path) as image:
        small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    values = torch.from_numpy(np.asarray(small).astype(np.float32) / 255)
    return ((values - MEAN) / STD).permute(2, 0, 1)


def truth(path: Path, *, size: int | None = None) -> NDArray[np.bool_]:
    """The mask of a JPEG at its own size or, by Pillow's nearest neighbour, at ``size``."""
    with Image.open(path) as image:
        mask = Image.fromarray(np.where(np.asarray(image.convert("L")) >= 128, np.uint8(255), np.uint8(0)))
    return np.asarray(mask if size is None else mask.resize((size, size), Image.Resampling.NEAREST)) > 0


def fit(segmenter: nn.Module, inputs: Tensor, targets: Tensor) -> list[float]:
    """The loss before each update."""
    trained = [parameter for parameter in segmenter.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.999), eps=1e-8)
    segmenter.train()
    losses = []
    for epoch in range(EPOCHS):
        for group in optimiser.param_groups:
            group["lr"] = LR * (1 - epoch / EPOCHS)
        logits = F.interpolate(segmenter(inputs).masks, size=(SIDE, SIDE), mode="bilinear", align_corners=False)[:, 0]
        loss = structure_loss(logits, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, CLIP)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def structure_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Weighted BCE and weighted IoU of 2006.11392, one image at a time."""
    parts = []
    for logit, label in zip(logits, mask, strict=True):
        near = F.avg_pool2d(label[None, None], 31, stride=1, padding=15)[0, 0]
        weight = 1 + 5 * (near - label).abs()
        p = logit.sigmoid()
        bce = -(label * p.log() + (1 - label) * (1 - p).log())
        both = (weight * p * label).sum()
        either = (weight * (p + label - p * label)).sum()
        parts.append((weight * bce).sum() / weight.sum() + 1 - (both + 1) / (either + 1))
    return torch.stack(parts).mean()


def measured(probability: NDArray[np.float64], mask: NDArray[np.bool_]) -> dict[str, float]:
    structure, error = sod.Smeasure(), sod.MAE()
    spread = (probability - probability.min()) / (probability.max() - probability.min())  # as its users do
    for metric in (structure, error):
        metric.step(spread, mask, normalize=False)
    predicted = probability > 0.5
    union = np.count_nonzero(predicted | mask)
    return {
        "s_measure": float(structure.get_results()["sm"]),
        "mae": float(error.get_results()["mae"]),
        "iou": np.count_nonzero(predicted & mask) / union if union else 1.0,
    }


def test_the_losses_of_every_epoch_are_those_of_a_plain_loop(record: dict[str, Any], by_hand: ByHand) -> None:
    assert [entry["loss"] for entry in record["history"]] == pytest.approx(by_hand.losses, rel=1e-4)
    assert by_hand.losses[-1] < 0.98 * by_hand.losses[0], "or a loop that does nothing would pass"


@pytest.mark.parametrize("metric", ["s_measure", "mae", "iou"])
def test_the_scores_are_those_of_the_model_so_trained(record: dict[str, Any], by_hand: ByHand, metric: str) -> None:
    expected = np.mean([scores[metric] for scores in by_hand.scores.values()])
    assert record["scores"]["last"]["test"][metric] == pytest.approx(expected, abs=2e-3)
    assert 0.02 < expected < 0.98
