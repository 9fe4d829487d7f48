"""``sam-peft data``: list, prepare and check benchmarks, and score predictions."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from harness.check import from_mapping, parse_assignments
from harness.cli.command import PROGRAM, CommandParser, add_plugins, command, load_own_plugins, subcommand, verb
from harness.datasets.base import BINARY, Benchmark, DataOptions, DatasetError, NotFound
from harness.registry import BENCHMARKS, JOINT, dataset_name, is_own
from harness.settings import load_settings, named_table
from harness.system.errors import UsageError, did_you_mean, writing_to
from harness.system.progress import bars
from harness.system.text import printable_line

DEFAULT_ROOT = Path("data")


def parser() -> CommandParser:
    p = command("data", __doc__)
    commands = p.add_subparsers(dest="command", required=True)

    listing = subcommand(
        commands, "list", "list every benchmark with its terms, size and source, and whether it is found"
    )
    _data(listing)
    add_plugins(listing, help="a file that defines more benchmarks")
    listing.set_defaults(run=run_list)

    preparing = subcommand(commands, "prepare", "download archives or take them from disk, verify and unpack them")
    preparing.add_argument("name", help="benchmark")
    preparing.add_argument(
        "--from", dest="sources", nargs="+", required=True, metavar="ARCHIVE_OR_URL", help="its archives"
    )
    _data(preparing)
    preparing.set_defaults(run=run_prepare)

    checking = subcommand(commands, "check", "check the files of a data set by rules; exit code 1 where one fails")
    checking.add_argument("name", help="benchmark, or NAME=DIR for data of your own")
    _data(checking)
    add_plugins(checking, help="a file that defines more benchmarks")
    checking.add_argument("--split-rule", default="default", metavar="RULE", help="split rule of the benchmark")
    checking.add_argument("--split-seed", type=int, default=0, metavar="N", help="seed of carved splits (default: 0)")
    own = checking.add_argument_group("data of your own")
    own.add_argument("--group", default="", metavar="REGEX", help="the part of a name that keeps images in one split")
    own.add_argument(
        "--category", default="", metavar="NAME", help="the category of a COCO file that is foreground; 'any' for all"
    )
    own.add_argument(
        "--invert", choices=("true", "false"), default="", help="invert binary masks; 'false' says they are right"
    )
    checking.add_argument("--json", action="store_true", help="print JSON")
    checking.set_defaults(run=run_check)

    scoring = subcommand(commands, "score", "score a folder of predictions against a folder of masks, paired by name")
    scoring.add_argument(
        "predictions", type=Path, help="grey images, whose levels are probabilities, or .npy in [0, 1]"
    )
    scoring.add_argument("masks", type=Path, help="masks with the same names")
    scoring.add_argument("--benchmark", metavar="NAME", help="use its classes and its encoding of masks")
    scoring.add_argument(
        "--num-classes", type=int, default=2, metavar="N", help="above 2, files hold class indices (default: 2)"
    )
    scoring.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="such as empty=0")
    scoring.add_argument("--json", action="store_true", help="print JSON, with the scores of every image")
    scoring.set_defaults(run=run_score)

    return p


def _data(parser: argparse.ArgumentParser) -> None:
    help = "folder that holds the benchmarks' folders (default: the setting, else data)"
    parser.add_argument("--data", type=Path, metavar="DIR", help=help)


def _folder(arguments: argparse.Namespace, name: str = "") -> Path:
    """The folder in which a benchmark is looked for: the command line's, else the setting for it or for all."""
    if arguments.data is not None:
        return Path(arguments.data)
    settings = load_settings()
    return named_table(settings, "datasets", dataset_name).get(name) or settings.data or DEFAULT_ROOT


@verb
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = arguments.run
    return run(arguments)


def _benchmark(name: str, options: DataOptions | None = None) -> Benchmark:
    return BENCHMARKS.get(name)(options)


def run_list(arguments: argparse.Namespace) -> int:
    load_own_plugins(arguments)
    for name in (*BENCHMARKS.names(), *JOINT):
        benchmark = _benchmark(name)
        sizes = "/".join(f"{n} {split}".removesuffix(" all") for split, n in benchmark.published_sizes.items())
        lines = [f"get it: {benchmark.source}"]
        for address in getattr(benchmark, "archives", ()):
            lines.append(f"{PROGRAM} data prepare {name} --from {address}")
        if named := [layout.name for layout in getattr(benchmark, "layouts", list)()]:
            lines.append(f"layouts: {', '.join(named)}")
        print(f"{name:<12} {benchmark.title}: {f'{sizes} images; ' if sizes else ''}terms: {benchmark.terms}")
        for line in (*lines, _where(benchmark, _folder(arguments, name))):
            print(f"{'':<12} {printable_line(line)}")
    return 0


def _where(benchmark: Benchmark, root: Path) -> str:
    try:
        return f"found: {benchmark.locate(root)}"
    except NotFound:
        return f"not found: nothing of it in {root}"
    except DatasetError as error:
        return f"not found: {error}"


def run_prepare(arguments: argparse.Namespace) -> int:
    from harness.datasets.preparing.prepare import FOLDER, prepare
    from harness.datasets.readers.folder_benchmark import FolderBenchmark

    benchmark = _benchmark(arguments.name)
    if not isinstance(benchmark, FolderBenchmark):
        raise UsageError(f"{benchmark.name} has no known layout of archives; unpack them yourself")
    root = _folder(arguments)
    with writing_to(f"what is prepared below {root}"), bars() as progress:
        folder, splits = prepare(benchmark, arguments.sources, root, progress=progress)
    if (root / FOLDER).is_dir():
        print(f"downloads are kept in {root / FOLDER}")
    listed = ", ".join(f"{split} {len(pairs)}" for split, pairs in splits.parts.items())
    print(f"prepared: {folder} (layout {splits.layout}; {listed})")
    print(f"next: sam-peft data check {benchmark.name} --data {root}")
    return 0


def run_check(arguments: argparse.Namespace) -> int:
    from harness.datasets.preparing.checking import check

    load_own_plugins(arguments)
    options = DataOptions(
        split_rule=arguments.split_rule,
        split_seed=arguments.split_seed,
        group=arguments.group,
        category=arguments.category,
        invert=arguments.invert == "true" if arguments.invert else None,
    )
    benchmark, root = _opened(arguments, options)
    with bars() as progress:
        report = check(benchmark, root, progress=progress)
    if arguments.json:
        print(json.dumps(_plain(report), indent=1))
    else:
        _print_check(_plain(report))
    return 0 if report.passed else 1


def _opened(arguments: argparse.Namespace, options: DataOptions) -> tuple[Benchmark, Path]:
    """The benchmark or the user's own data that the command line names, and its folder.

    Raises:
        UsageError: it is not a benchmark, and no folder is given or set for it; or an option is not for benchmarks.
    """
    from harness.datasets.own import any_folder

    word, _, given = arguments.name.partition("=")
    name, folder = dataset_name(word), Path(given).expanduser() if given else None
    if name in BENCHMARKS and not is_own(name):
        for option in ("group", "category", "invert"):
            if getattr(arguments, option):
                raise UsageError(f"--{option} is for data of your own; the benchmarks have rules of their own")
        benchmark = _benchmark(name, options)
        return benchmark, benchmark.locate(folder or _folder(arguments, name))
    of_settings = named_table(load_settings(), "datasets", dataset_name).get(name)
    where = folder or (of_settings and (arguments.data or of_settings))
    if where is None:
        likely = did_you_mean(word, BENCHMARKS.names())
        raise UsageError(f"{word} is not a benchmark{likely}; data of your own is checked as {name}=DIR")
    own, root = any_folder(name, where, options)
    return own(options), root


def _plain(report: Any) -> dict[str, Any]:
    """A check as it is printed. ``fingerprint``: of the files' contents, as records have it; None where they cannot be read."""
    from harness.planning.data import data_fingerprint

    splits = report.splits
    try:
        files = data_fingerprint(splits) if splits else None
    except DatasetError:  # which its verdicts say
        files = None
    return {
        "benchmark": report.benchmark,
        "root": str(report.root),
        "passed": report.passed,
        **{field: getattr(splits, field, None) for field in ("layout", "rule", "note")},
        "fingerprint": files,
        "counts": {name: len(pairs) for name, pairs in splits.parts.items()} if splits else {},
        "verdicts": [verdict._asdict() for verdict in report.verdicts],
    }


def _print_check(report: Mapping[str, Any]) -> None:
    lines = [f"{report['benchmark']} in {report['root']}"]
    if report["fingerprint"]:
        lines.append(f"  files   {report['fingerprint']}")
    for verdict in report["verdicts"]:
        lines.append(f"  {verdict['status']:<7} {verdict['rule']}: {verdict['message']}")
        lines += [f"            {name}" for name in verdict["files"][:5] if verdict["status"] != "passed"]
    for line in (*lines, f"  {'passed' if report['passed'] else 'FAILED'}"):
        print(printable_line(line))


def run_score(arguments: argparse.Namespace) -> int:
    from harness.datasets.own import own_benchmark
    from harness.datasets.readers.folder_benchmark import FolderBenchmark
    from harness.evaluation.conventions import OF_TASK, Conventions
    from harness.evaluation.score_folders import score_folders
    from harness.evaluation.scorer import SplitScorer

    if not 2 <= arguments.num_classes <= 255:
        raise UsageError(f"--num-classes {arguments.num_classes}: give 2 to 255")
    classes = [str(index) for index in range(arguments.num_classes)] if arguments.num_classes > 2 else BINARY
    own = own_benchmark("masks", classes)
    benchmark = _benchmark(arguments.benchmark) if arguments.benchmark else own()
    if not isinstance(benchmark, FolderBenchmark):
        raise UsageError(f"{benchmark.name} does not say how its masks are read; leave --benchmark out")
    rules = from_mapping(Conventions, parse_assignments(arguments.set, example="--set empty=0"), where="--set")
    task = benchmark.task
    scorer = SplitScorer(OF_TASK[task], task=task, num_classes=benchmark.num_classes, conventions=rules)
    with bars() as move:
        score_folders(
            arguments.predictions,
            arguments.masks,
            scorer,
            read_mask=benchmark.decode_mask,
            progress=partial(move, "scoring"),
        )
    images = scorer.images()
    if ignored := scorer.ignored():
        print(f"left out, since every pixel of the mask is ignored: {', '.join(ignored)}", file=sys.stderr)
    if arguments.json:
        scores = {"images": len(images), "scores": scorer.summary(), "per_image": images}
        print(json.dumps(scores, indent=1))
    else:
        print(f"{len(images)} images")
        for name, value in scorer.summary().items():
            print(f"{name:<12} {value:.4f}")
    return 0
