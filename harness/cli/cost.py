"""``sam-peft cost``: measure training and inference cost, methods interleaved.

Rounds go A B C A B C … in one process on one device, so that whatever slows the machine slows all methods; ratios are paired by round. The
result is a cost record below ``ROOT/cost``; ``sam-peft tables --study cost`` prints the table.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.archive.measured import CostStore
from harness.archive.store import require_writable
from harness.check import parse_assignments
from harness.cli.command import (
    CommandParser,
    Once,
    add_plugins,
    add_results,
    command,
    load_own_plugins,
    results_of,
    verb,
)
from harness.models.catalog import backbone_shape, require_stands, resolve_backbone
from harness.models.decoders import LABELLING
from harness.models.published import weights_file
from harness.planning.plan import configured
from harness.planning.understand import parse_rows, require_rows, split_overrides, with_options
from harness.protocols.load import for_backbone, load_protocol
from harness.report.costs import cost_page
from harness.report.formats import write
from harness.system.errors import UsageError
from harness.system.streams import terminal_width

if TYPE_CHECKING:
    import torch


def parser() -> CommandParser:
    p = command("cost", __doc__)
    p.add_argument(
        "--methods", action=Once, required=True, metavar="A,B[opt=1],…",
        help="methods in the order of a round; 'all' for every one that trains",
    )  # fmt: skip
    p.add_argument("--protocol", default="nas-lora", metavar="NAME", help="rules of training (default: nas-lora)")
    p.add_argument("--backbone", metavar="NAME", help="default: the protocol's")
    p.add_argument(
        "--checkpoint", type=Path, metavar="FILE",
        help="pretrained weights ('published' downloads them); without it they are random, which costs the same",
    )  # fmt: skip
    p.add_argument(
        "--classes",
        type=int,
        metavar="N",
        help="measure a multi-class task with this many classes, background included (default: the binary task)",
    )
    p.add_argument("--rounds", type=int, default=9, metavar="N", help="measured rounds (default: 9)")
    p.add_argument("--device", metavar="NAME", help="cpu or cuda:N (default: the GPU if there is one)")
    p.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's)")
    p.add_argument(
        "--clock",
        choices=("wall", "processor"),
        default="wall",
        help="processor measures CPU seconds of one thread, for a CPU that others use (default: wall)",
    )
    p.add_argument("--shared", action="store_true", help="measure even if others use the device; the record is marked")
    p.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="override a rule of the protocol or an option: image_size=1024, batch_size=4, precision=bf16, lora.rank=6",
    )  # fmt: skip
    add_plugins(p)
    add_results(p)
    return p


@verb
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    _check(arguments)
    load_own_plugins(arguments)
    store, compared = CostStore(results_of(arguments)), _compared(arguments)

    import torch  # after everything that the options alone can get refused

    from harness.costing.instruments import used_by_others
    from harness.costing.measure import measure
    from harness.costing.session import Session

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = _device(arguments.device)
    others = used_by_others(device)
    if others and not arguments.shared:
        raise UsageError(
            f"{others}; wait until the device is free, or measure anyway with --shared, which marks the record"
        )
    session = Session(**compared, rounds=arguments.rounds, device=device, shared=others, clock=arguments.clock)
    require_writable(store.folder)
    record = measure(session, report=lambda line: print(line, file=sys.stderr, flush=True))
    path = store.write(record)
    page = cost_page([record], title="cost", details=True)
    print(write(page, style="text", width=terminal_width(sys.stdout) or 100), end="")
    print(f"written: {path}", file=sys.stderr)
    return 1 if record.dropped else 0


def _compared(arguments: argparse.Namespace) -> dict[str, Any]:
    """The rows of a session, and what they share."""
    general, by_method = split_overrides(parse_assignments(arguments.set))
    protocol = load_protocol(arguments.protocol, general)
    backbone = resolve_backbone(arguments.backbone or protocol.backbone)
    protocol = for_backbone(protocol, backbone)
    shape = backbone_shape(backbone, protocol.image_size)
    require_stands(protocol.decoder, backbone)
    compared = parse_rows(arguments.methods)
    require_rows(by_method, compared)
    rows = [configured(row, protocol) for row in with_options(compared, by_method)]
    for row in rows:
        row.config.encoder_parameters(shape)  # refuses a placement that does not fit
    checkpoint = weights_file(arguments.checkpoint, backbone) if arguments.checkpoint is not None else None
    task = "classification" if protocol.decoder in LABELLING else "multiclass" if arguments.classes else "binary"
    return {
        "rows": rows, "backbone": backbone, "checkpoint": checkpoint, "protocol": protocol, "task": task,
        "num_classes": arguments.classes or 2,
    }  # fmt: skip


def _check(arguments: argparse.Namespace) -> None:
    for name, least, most in (("rounds", 1, 10**6), ("threads", 1, 1024), ("classes", 2, 255)):
        value = getattr(arguments, name)
        if value is not None and not least <= value <= most:
            raise UsageError(f"--{name} {value}: give at least {least}, and at most {most}")


def _device(name: str | None) -> torch.device:
    import torch

    from harness.models.device import compute_on

    name = name or ("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    there = torch.cuda.device_count()
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and (device.index or 0) >= there):
        raise UsageError(f"--device {name!r}: give cpu or cuda:N (this machine has {there} CUDA devices)")
    return compute_on(torch.device("cuda:0") if name == "cuda" else device)
