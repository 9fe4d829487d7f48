"""Evaluation of a split, metrics included, against its forward passes alone.

``python -m benchmarks.evaluation --backbone vit_b --image-size 1024 --images 4``; ``--metrics`` are those of a
benchmark by name. The two take turns, so that ratios pair.
"""

from __future__ import annotations

import argparse
import statistics

import torch

from benchmarks.peers import ATTENTIONS, hf_plain
from benchmarks.reference import plain_twin
from benchmarks.saving import save
from benchmarks.step import step_options, with_interval
from harness.costing.instruments import clock_of, used_by_others
from harness.costing.session import RandomImages
from harness.evaluation.evaluate import evaluate_split
from harness.evaluation.scorer import SplitScorer
from harness.models.build import build_segmenter
from harness.models.device import autocast
from harness.models.segmenter import Segmenter, probabilities
from harness.protocols.load import for_backbone, load_protocol
from harness.registry import BENCHMARKS
from harness.statistics import paired_ratio


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="vit_b")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--metrics", default="camo", help="the metrics of this benchmark")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--peers", action="store_true", help="also the forward passes of segment_anything's modules and of transformers"
    )
    options = step_options(parser, argv, precision="fp32", rounds=3)
    device = torch.device(options.device)
    protocol = for_backbone(
        load_protocol("standard", {"image_size": options.image_size, "precision": options.precision}), options.backbone
    )
    shared, now = used_by_others(device), clock_of("processor" if options.cpu_time else "wall", device)
    segmenter = build_segmenter(options.backbone, task="binary", image_size=options.image_size)
    peers = _peers(options.backbone, segmenter) if options.peers else {}
    for model in (segmenter, *peers.values()):
        model.to(device).eval()
    source = RandomImages(options.images, image_size=options.image_size, num_classes=2)
    inputs = [torch.from_numpy(source.image(k)).float() / 127.5 - 1 for k in range(len(source))]
    size = (options.image_size, options.image_size)
    benchmark = BENCHMARKS.get(options.metrics)

    def predict(images: torch.Tensor, model: torch.nn.Module = segmenter) -> torch.Tensor:
        with torch.no_grad(), autocast(protocol.precision, device):
            output = model(images.to(device))
        return probabilities(output, size)

    def forward_passes(model: torch.nn.Module = segmenter) -> float:
        begun = now()
        for start in range(0, len(inputs), options.batch):
            predict(torch.stack(inputs[start : start + options.batch]), model)
        return now() - begun

    def evaluation() -> float:
        items = [(str(k), inputs[k], source.mask_input(k)) for k in range(len(source))]
        begun = now()
        scorer = SplitScorer(benchmark.metrics)
        workers = 1 if options.cpu_time else None
        evaluate_split(predict, items, scorer, batch_size=options.batch, workers=workers).summary()
        return now() - begun

    forward_passes()
    alone, scored = [], []
    theirs: dict[str, list[float]] = {name: [] for name in peers}
    for _ in range(options.rounds):
        alone.append(forward_passes())
        scored.append(evaluation())
        for name, model in peers.items():
            theirs[name].append(forward_passes(model))
    ratio = paired_ratio(scored, alone)
    measured = {"shared": shared, "metrics": list(benchmark.metrics), "ratio": ratio._asdict()}
    seconds = {"forward": alone, "evaluation": scored, **{f"forward {name}": times for name, times in theirs.items()}}
    ratios = {name: paired_ratio(alone, times) for name, times in theirs.items()}
    measured["peers"] = {name: peer._asdict() for name, peer in ratios.items()}
    save(options.json, options=options, measured={**measured, "seconds": seconds})
    print(f"metrics of {options.metrics}: {', '.join(benchmark.metrics)}; {shared or 'exclusive device'}")
    print(f"forward passes alone {statistics.median(alone):.2f} s, evaluation {statistics.median(scored):.2f} s")
    print(f"evaluation / forward passes: {with_interval(ratio)}")
    for name, peer in ratios.items():
        print(f"our forward passes / {name}: {with_interval(peer)}")
    return 0


def _peers(backbone: str, segmenter: Segmenter) -> dict[str, torch.nn.Module]:
    """The plain reference and transformers' encoders, with the weights of ``segmenter``."""
    plain = plain_twin(backbone, segmenter, None)
    models: dict[str, torch.nn.Module] = {"plain": plain}
    return models | {f"hf-{attention}": hf_plain(plain, attention=attention) for attention in ATTENTIONS}


if __name__ == "__main__":
    raise SystemExit(main())
