"""``sam-peft figures``: draw figures from the records of a results folder as SVG, PDF and PNG, or check them."""

from __future__ import annotations

import sys
from pathlib import Path

from harness.archive.archive import Archive
from harness.archive.measured import CostStore, EvidenceStore
from harness.archive.store import require_writable
from harness.cli.command import CommandParser, add_results, command, require_effect, results_of, verb, write_file
from harness.comparison.names import benchmark_rank
from harness.planning.data import network_images
from harness.registry import canonical_spelling, dataset_name
from harness.report.figures import FIGURES, draw, figure_files, figure_named, wrong_figures
from harness.report.figures.material import Material, NothingToDrawError, materials
from harness.report.figures.style import FORMATS, Format, encoded
from harness.studies import load_study
from harness.system.errors import UsageError
from harness.system.streams import say, say_skipped


@verb
def main(argv: list[str] | None = None) -> int:
    options = parser().parse_args(argv)
    options.results = results_of(options)
    if options.check:
        if options.names:
            raise UsageError("--check looks at every figure of a results folder; leave the names away")
        require_effect(options, "study", "benchmark", "seed", "baseline", "data", "out", without="with --check")
        return _check(options.results)
    if not options.names:
        raise UsageError(f"name a figure: all, {', '.join(FIGURES)}")
    out = options.out or options.results / "figures"
    require_writable(out, named="folder", option="--out")
    names = list(FIGURES) if "all" in options.names else [figure_named(name) for name in options.names]
    formats = _formats(options.format)
    archive = Archive(options.results)
    drawn = materials(
        archive,
        study=load_study(options.study) if options.study else None,
        baseline=options.baseline,
        pictures=network_images(options.results, data=options.data) if {"masks", "strip"} & set(names) else None,
        seed=options.seed,
    )
    where = f"study {options.study}" if options.study else str(options.results)
    drawn = _on_benchmark(drawn, options.benchmark, where=where)
    _require_seed(drawn, options.seed)
    stores = (CostStore(options.results), EvidenceStore(options.results))
    say_skipped({**archive.problems, **{path: why for store in stores for path, why in store.problems().items()}})
    reasons: list[str] = []
    written = 0
    for material in drawn:
        for name in names:
            try:
                written += _write(name, material, out, formats, benchmark=canonical_spelling(options.benchmark))
            except NothingToDrawError as error:
                reasons.append(f"{material.name}: no {name}: {error}")
    if not written:
        more = f" (and {len(reasons) - 1} more like it)" if len(reasons) > 1 else ""
        raise UsageError(f"nothing to draw: {reasons[0]}{more}")
    for reason in reasons:
        say(reason)
    print(f"{written} figures written below {out}")
    return 0


def _on_benchmark(drawn: list[Material], asked: str, *, where: str) -> list[Material]:
    """Those with runs on the benchmark; all where none is asked for. Raises UsageError: none has."""
    name = canonical_spelling(asked)
    there = {benchmark for material in drawn for benchmark in material.grid.first_columns}
    if name and name not in there:
        name = dataset_name(asked)
        raise UsageError(f"no run on {name} in {where}; it has {', '.join(sorted(there, key=benchmark_rank))}")
    return [material for material in drawn if not name or name in material.grid.first_columns]


def _require_seed(drawn: list[Material], seed: int | None) -> None:
    runs = (record for material in drawn for row in material.grid.rows for record in row.runs)
    there = sorted({record.run.seed for record in runs if record.code == "OK"})
    if seed is None or seed in there:
        return
    whole = len(there) > 2 and there == list(range(there[0], there[-1] + 1))
    words = f"{there[0]} to {there[-1]}" if whole else ", ".join(map(str, there))
    raise UsageError(f"no run of seed {seed}; there {'is' if len(there) == 1 else 'are'} {words}")


def _write(name: str, material: Material, out: Path, formats: list[Format], *, benchmark: str) -> int:
    count, others = 0, set()
    for stem, drawing in draw(name, material):
        if benchmark and drawing.benchmark != benchmark:
            others.add(drawing.benchmark)
            continue
        files: dict[str, str | bytes] = {
            style: encoded(drawing.figure, style, title=stem, caption=drawing.caption) for style in formats
        }
        for ending, content in {**files, "txt": drawing.caption + "\n"}.items():
            write_file(out / f"{stem}.{ending}", content, what="figure")
        print(f"{out / stem}: {drawing.caption}", file=sys.stderr)
        count += 1
    if not count:
        shown = ", ".join(sorted(filter(None, others), key=benchmark_rank))
        raise NothingToDrawError(f"it shows {shown or 'all benchmarks at once'}; leave --benchmark away")
    return count


def _check(root: Path) -> int:
    wrong, notes = wrong_figures(root)
    for note in notes:
        say(note)
    for line in wrong:
        print(line)
    print(f"{len(figure_files(root))} figures checked, {len(wrong)} wrong")
    return 1 if wrong else 0


def _formats(text: str) -> list[Format]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in FORMATS:
            raise UsageError(f"unknown format {name!r} (choose from {', '.join(FORMATS)}, separated by commas)")
    return [known for known in FORMATS if known in names]


def parser() -> CommandParser:
    p = command("figures", __doc__, epilog="figures: " + "; ".join(f"{name}: {what}" for name, what in FIGURES.items()))
    p.add_argument("names", nargs="*", metavar="NAME", help="a figure, several, or all")
    add_results(p)
    p.add_argument("--study", metavar="NAME", help="only the rows, benchmarks and seeds of a study")
    p.add_argument("--benchmark", default="", metavar="NAME", help="only figures of this benchmark")
    p.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="masks, strip: of this seed's runs (default: of those that most rows have, the one whose scores are most usual)",
    )
    p.add_argument("--baseline", default="", metavar="ROW", help="label of the row to compare with (default: LoRA's)")
    p.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="masks, strip: the benchmarks' folder, to show images too (default: as set)",
    )
    p.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: figures below the results folder)")
    p.add_argument("--format", default=",".join(FORMATS), metavar="NAMES", help=f"default: {','.join(FORMATS)}")
    p.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if an SVG there differs from what the records give"
    )
    return p
