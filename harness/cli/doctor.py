"""``sam-peft doctor``: test every method on tiny models, or a GPU (--device cuda).

It prints what each method can do under the contract of methods, on a tiny SAM and a tiny timm ViT.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from harness.cli.command import CommandParser, Once, add_plugins, command, load_own_plugins, require_effect, verb
from harness.methods import PEFT_METHODS
from harness.models.catalog import resolve_backbone
from harness.planning.request import PlannedRow
from harness.planning.understand import parse_rows
from harness.registry import METHODS, method_config
from harness.system.errors import UsageError
from harness.system.progress import spinner
from harness.system.streams import say


def parser() -> CommandParser:
    """The command line; building it imports no torch."""
    p = command(
        "doctor",
        __doc__,
        epilog="Exit code 1 if a method breaks the contract.",
    )
    p.add_argument(
        "--methods",
        action=Once,
        default="all",
        metavar="A,B[opt=1],…",
        help="methods to test, with options in brackets (default: all, plug-ins included)",
    )
    p.add_argument(
        "--backbone",
        metavar="NAME",
        help="backbone to count parameters on (default: vit_h), or to measure with --device (default: vit_b)",
    )
    p.add_argument(
        "--device",
        choices=["cuda"],
        help="test a GPU instead: a step of every method against the CPU's, attention, rates (docs/gpu.md); the first part of --accept",
    )
    p.add_argument(
        "--accept",
        action="store_true",
        help="with --device: test in less than an hour whether runs on this machine are right; repeat the command to continue",
    )
    p.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="with --accept: a folder of benchmarks whose images are used (default: generated ones)",
    )
    p.add_argument(
        "--cluster", metavar="NAME", help="with --accept: also send two runs through the queue of this cluster"
    )
    p.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="with --device: the file for the results, as JSON (default: gpu.json with --accept, gpu-step.json without)",
    )
    add_plugins(p)
    p.add_argument("--json", action="store_true", help="print a list of objects, one per method")
    return p


@verb
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    load_own_plugins(arguments)
    chosen = chosen_rows(arguments.methods)
    if not arguments.accept:
        require_effect(arguments, "data", "cluster", without="without --accept")
    if arguments.device:
        require_effect(arguments, "json", without="with --device, whose results are in --out FILE")
        return _examine_gpu(arguments, chosen)
    require_effect(arguments, "accept", "out", without="without --device cuda")

    known, rows = resolve_backbone(arguments.backbone or "vit_h"), []
    with spinner() as report:
        report("loading torch")
        from harness.contract.matrix import examine, matrix_markdown

        for number, wanted in enumerate(chosen, start=1):
            report(f"trying {wanted.method} ({number}/{len(chosen)})")
            row = examine(wanted.method, backbone=known, options=wanted.options)
            say(f"{wanted.method}: {'contract holds' if row.passed else 'contract broken'}")
            rows.append(row)

    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        print(matrix_markdown(rows))
    for row in rows:
        if row.refusal:
            print(f"{row.method}: not on {known}: {row.refusal}", file=sys.stderr)
        for clause, reason in row.declared.items():
            print(f"{row.method}: declares {clause}: {reason}", file=sys.stderr)
        for clause, seen in row.failures.items():
            print(f"{row.method}: {clause}: {seen}", file=sys.stderr)
    return 0 if all(row.passed for row in rows) else 1


def _examine_gpu(arguments: argparse.Namespace, rows: Sequence[PlannedRow]) -> int:
    """Print a line for each part as it ends; returns 1 where something is wrong, else 0. Raises UsageError: a row has options."""
    names = [row.method for row in rows]
    if row := next((row for row in rows if row.options), None):
        raise UsageError(f"--methods {row.method}[…]: a GPU is tested with every method's own options; leave them out")
    out = arguments.out or Path("gpu.json" if arguments.accept else "gpu-step.json")  # a step must not overwrite hours
    with spinner() as report, TemporaryDirectory(prefix="harness-accept-") as folder:
        report("loading torch")
        from harness.accept import Machine, accept, benchmark_below
        from harness.contract.gpu import require_gpu

        machine = Machine(
            device=require_gpu(),
            backbones=[resolve_backbone(arguments.backbone)] if arguments.backbone else ["vit_b", "vit_h"],
            methods=[*names, *PEFT_METHODS] if arguments.accept and arguments.methods == "all" else names,
            data=arguments.data,
            results=Path(folder),
            shared=out.with_suffix(".runs"),
            cluster=arguments.cluster or "",
            report=report,
        )
        benchmark_below(arguments.data)
        right = True
        for line, part_is_right in accept(machine, out, every_part=arguments.accept):
            print(line, flush=True)
            right &= part_is_right
    return 0 if right else 1


def chosen_rows(text: str) -> list[PlannedRow]:
    """``lora[rank=8],vpt`` as rows; ``all`` stands for every known method. Raises UsageError: none, or an unknown method or
    option."""
    rows = list(parse_rows(text, METHODS.names()))
    if not rows:
        raise UsageError("--methods names no method")
    for row in (row for row in rows if row.options):
        method_config(row.method, row.options)
    return rows
