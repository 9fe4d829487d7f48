"""Peak memory of a training step of every method, counted exactly on tensors without content.

``python -m benchmarks.memory --backbone vit_h --image-size 1024``: nothing is computed, so ViT-H at 1024 pixels takes
seconds on any machine. fp32, and the CPU's way through attention; working memory inside an operation is not counted.
Torch's own attention takes its slowest way on such tensors, with all scores; for LST, which uses it, add
``--device cpu``.
"""

from __future__ import annotations

import argparse
import contextlib
from unittest.mock import patch

import torch
from tabulate import tabulate

from benchmarks.saving import add_json, save
from harness.costing.measure import build_subject, peak_memory
from harness.costing.session import Session
from harness.models.catalog import resolve_backbone
from harness.planning.rows import MethodRow
from harness.protocols.load import for_backbone, load_protocol
from harness.registry import METHODS, method_config_class


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="vit_b")
    parser.add_argument("--image-size", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--methods", default=",".join(METHODS.names()))
    parser.add_argument(
        "--device", default="meta", help="cpu computes the steps; for methods that use torch's own attention"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    add_json(parser)
    options = parser.parse_args(argv)
    overrides = {"image_size": options.image_size, "batch_size": options.batch, "precision": "fp32"}
    overrides["cache_embeddings"] = False  # a cache needs content
    overrides |= dict(item.split("=", 1) for item in options.set)
    protocol = for_backbone(load_protocol("nas-lora", overrides), options.backbone)
    rows = []
    peaks: dict[str, dict[str, int]] = {}
    # Autocast knows no tensors without content; fp32 needs none.
    with patch("torch.autocast", lambda *_, **__: contextlib.nullcontext()), torch.device(options.device):
        for name in options.methods.split(","):
            row = MethodRow(method=name, config=method_config_class(name)(), label=name)
            session = Session(
                rows=[row],
                backbone=resolve_backbone(options.backbone),
                checkpoint=None,
                protocol=protocol,
                device=torch.device(options.device),
            )
            subject = build_subject(row, session)
            try:
                parts = [peak_memory(subject, phase) for phase in subject.shares()]
            except NotImplementedError:  # Conv-LoRA chooses its expert by what the image holds
                rows.append([name, "depends on the image"])
                continue
            finally:
                subject.close()
            peaks[name] = {key: max(part[key] for part in parts) for key in _KEYS}
            rows.append([name, *(f"{peaks[name][key] / 2**30:.2f}" for key in _KEYS)])
    save(options.json, options=options, measured={"bytes": peaks})
    print(
        tabulate(rows, headers=["method", *(f"{key} (GiB)" for key in _KEYS)], tablefmt="github", disable_numparse=True)
    )
    return 0


_KEYS = ("allocated", "weights", "gradients", "optimiser", "activations")


if __name__ == "__main__":
    raise SystemExit(main())
