"""``sam-peft evidence``: measure what finished runs' best models do inside, against their frozen backbones."""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from harness.archive.measured import EvidenceRecord, EvidenceStore
from harness.archive.schema import Run
from harness.archive.store import require_writable
from harness.cli.command import (
    CommandParser,
    add_plugins,
    add_results,
    add_run,
    command,
    load_own_plugins,
    results_of,
    verb,
)
from harness.comparison.finding import find_run
from harness.models.published import require_file_or_word
from harness.settings import load_settings
from harness.statistics.cka import FEWEST, cka
from harness.system.errors import UsageError
from harness.system.streams import stages


def parser() -> CommandParser:
    p = command(
        "evidence",
        __doc__,
        epilog="Writes RESULTS/evidence/KEY.json: attention distance by block and head, frequencies, Gram matrices for CKA, the"
        " size of the update by site. sam-peft figures draws them, sam-peft claims judges by them.",
    )
    add_run(p, required=True, several="; may be repeated")
    add_results(p)
    p.add_argument("--data", type=Path, metavar="DIR", help="the benchmarks' folder (default: as set)")
    p.add_argument("--checkpoint", type=Path, metavar="FILE", help="the pretrained weights that the runs started from")
    p.add_argument("--images", type=int, default=32, metavar="N", help="test images (default: 32)")
    p.add_argument("--batch", type=int, default=8, metavar="N", help="images a minibatch of CKA (default: 8)")
    p.add_argument(
        "--merge",
        action="append",
        choices=("exact", "conv", "calibrated"),
        help="modes of merging whose deviation is measured block by block (default: those of the run's protocol)",
    )
    add_plugins(p, help="as the runs had it")
    return p


@verb
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.batch < FEWEST or arguments.images < arguments.batch:
        raise UsageError(
            f"--images {arguments.images} --batch {arguments.batch}: a minibatch needs {FEWEST} images, and at least one is"
            " needed"
        )
    require_file_or_word(arguments.checkpoint)
    load_own_plugins(arguments)
    results = results_of(arguments)
    runs = [find_run(results, key) for key in arguments.run]
    store = EvidenceStore(results)
    require_writable(store.folder)

    from harness.evidence.measuring import measure_insides
    from harness.experiment.environment import own_device

    for run in runs:
        with stages() as tell:
            record = measure_insides(measurement_of(arguments, run), device=own_device(), tell=tell)
        print(f"{store.write(record)}: {_summary(run, record)}")
    return 0


def measurement_of(arguments: argparse.Namespace, run: Run) -> Any:
    """The request for one run; torch is loaded here."""
    from harness.evidence.measuring import Measure
    from harness.experiment.trained import of_results
    from harness.planning.asked import checkpoint_of, tested_folder

    results, settings = results_of(arguments), load_settings()
    return Measure(
        data=tested_folder(run, settings, given=arguments.data, results=results),
        trained=of_results(results, run.key),
        checkpoint=checkpoint_of(run, settings, given=arguments.checkpoint),
        images=arguments.images,
        batch=arguments.batch,
        merges=arguments.merge,
    )


def _summary(run: Run, record: EvidenceRecord) -> str:
    """One line: windowed and global blocks apart, trained against frozen."""
    parts = [f"{run.variant} on {run.benchmark}, seed {run.seed}, {len(record.images)} images"]
    for name, blocks in (
        ("windowed", [block for block in record.blocks if block.window]),
        ("global", [block for block in record.blocks if not block.window]),
    ):
        if blocks:
            now, then = (
                statistics.fmean(getattr(block, side).mean_distance for block in blocks)
                for side in ("trained", "frozen")
            )
            uniform = statistics.fmean(block.uniform_px for block in blocks)
            parts.append(
                f"attention distance in {len(blocks)} {name} blocks {now:.1f} px, frozen {then:.1f}, uniform {uniform:.1f}"
            )
    last = record.blocks[-1]
    parts.append(f"CKA to the frozen last block {cka(last.trained.grams, last.frozen.grams):.3f}")
    return "; ".join(parts)
