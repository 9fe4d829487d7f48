"""From a folder that somebody sent to a verdict on its row (docs/join.md): intake.py DIR, also as `make intake DIR=…`.

DIR holds `records/`, and the file of the method where it is a plug-in. The records are checked, the method goes through the contract,
the table is made with the row, and one replicate of LoRA and of the row is run again. Exit code 1 with one line where something fails;
else `submitted.csv` in the folder of the output has the lines that `results/submitted.csv` gets when the records are merged.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import shlex
import statistics
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from harness.__main__ import main as command
from harness.archive.archive import Archive, Joined, weights_of
from harness.archive.schema import Record
from harness.studies import Row, Study, choices_of, load_study
from harness.submission import rows_of

REPOSITORY = Path(__file__).resolve().parents[3]
LEAST = 0.001
"""A tenth of a point: a rerun on another machine may always differ by this much."""


class Refused(Exception):
    """One line that says why."""


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path)
    p.add_argument("--study", default="leaderboard")
    p.add_argument("--results", type=Path, default=REPOSITORY / "results", help="the committed records")
    p.add_argument("--out", type=Path, default=REPOSITORY / "build/intake", help="table and rerun")
    p.add_argument("--run", default="", metavar="WORDS", help="what the rerun needs: '--data DIR --checkpoint FILE'")
    arguments = p.parse_args(argv)
    try:
        intake(arguments.folder, load_study(arguments.study), arguments)
    except Refused as refused:
        print(f"refused: {refused}")
        return 1
    print(f"accepted: {arguments.folder}, rerun on this machine")
    return 0


def intake(folder: Path, study: Study, arguments: argparse.Namespace) -> None:
    """Raises Refused."""
    plugins = [word for path in sorted(folder.glob("*.py")) for word in ("--plugin", str(path))]
    of_study = ["--study", arguments.study]
    code, text = _run("records", "check", str(folder), *of_study, *plugins)
    if code:
        raise Refused(next((line[7:] for line in text.splitlines() if line.startswith("wrong")), "no records to check"))
    runs = [record.run for record in Archive(folder).records]
    rows = {row.label: row for run in runs for row in rows_of(run, runs, study)}
    for row in rows.values():
        options = [f"--set={row.method}.{name}={_word(value)}" for name, value in row.options.items()]
        if _run("doctor", "--methods", row.method, *plugins, *options)[0]:
            raise Refused(f"contract: {row.label} breaks it; sam-peft doctor --methods {row.method} says where")
    code, text = _run("tables", *of_study, "--results", str(folder), "--with", str(arguments.results))
    if code:
        raise Refused("table: it cannot be made with this row")
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "table.md").write_text(text, encoding="utf-8")
    benchmark, seed = replicate(folder, study)
    print(f"running seed {seed} on {benchmark} again", flush=True)
    again = arguments.out / f"rerun-{_digest(folder).hex()[:12]}"
    rows |= {row.label: row for row in study.entries if row.label == study.table.baseline}
    grid = ["--methods", ",".join(map(_words, rows.values())), "--datasets", benchmark, "--seeds", f"{seed},"]
    _run("run", *of_study, *grid, "--results", str(again), *plugins, *shlex.split(arguments.run))
    made = {record.key for record in Archive(again).records}
    own = {r.key for r in Archive(folder).records if (r.run.benchmark, r.run.seed) == (benchmark, seed)}
    if not own <= made or len(made) == len(own):
        raise Refused(f"rerun: not all runs of seed {seed} on {benchmark} ended here; the lines above say why")
    compare(Joined(folder, arguments.results), Archive(again), study)
    states = [f"{record.key},rerun by CI\n" for record in Archive(folder).records]
    (arguments.out / "submitted.csv").write_text("".join(states), encoding="utf-8")


def replicate(folder: Path, study: Study) -> tuple[str, int]:
    """(benchmark, seed) by the hash of the records, which nobody can choose beforehand."""
    choices = [(benchmark, seed) for benchmark in study.benchmarks for seed in study.seeds]
    return choices[int.from_bytes(_digest(folder)) % len(choices)]


def _digest(folder: Path) -> bytes:
    digests = [hashlib.sha256(path.read_bytes()).digest() for path in Archive(folder).store.files()]
    return hashlib.sha256(b"".join(digests)).digest()


def compare(sent: Archive, again: Archive, study: Study) -> None:
    """Hold each run that was made again against its record.

    The tolerance is from the records' own scatter: twice the standard deviation of a difference between two seeds of the same row and
    rate, pooled over its rates. A rerun whose images score far more like another seed's shows that seeds were swapped.

    Raises:
        Refused: a score differs by more, a seed is another's, or there is no record to compare with.
    """
    listed = {record.key: record for record in sent.records}
    for record in again.records:
        standing, what = listed.get(record.key), f"{record.run.label}, seed {record.run.seed}"
        if standing is None or standing.code != record.code:
            said = "there is no record of it" if standing is None else f"its record says {standing.code}"
            raise Refused(f"rerun: {what} ended with {record.code}, and {said}")
        if record.code != "OK":
            continue
        alike = [other for other in listed.values() if other.code == "OK" and _row(other, study) == _row(record, study)]
        difference, most = abs(score(record, study) - score(standing, study)), tolerance(alike, study)
        words = f"{what}, is {100 * difference:.2f} points from its record; {100 * most:.2f} are allowed"
        images = _images(again, record, study)
        same_options = [other for other in alike if other.run.method_config == record.run.method_config]
        apart = {other.run.seed: _distance(images, _images(sent, other, study)) for other in same_options}
        nearest = min(apart, key=lambda seed: apart[seed])
        if apart[nearest] < apart[standing.run.seed] / 2:
            raise Refused(f"rerun: {words}, and its images score as those of seed {nearest} do: seeds were swapped")
        if difference > most:
            raise Refused(f"rerun: {words}")
        print(words)


def tolerance(alike: Sequence[Record], study: Study) -> float:
    """Of runs of one row and benchmark under several seeds; in the unit of the score."""
    by_options: dict[str, list[float]] = {}
    for record in alike:
        by_options.setdefault(str(record.run.method_config), []).append(score(record, study))
    variances = [statistics.variance(values) for values in by_options.values() if len(values) > 1]
    return max(LEAST, 2 * math.sqrt(2 * statistics.fmean(variances))) if variances else LEAST


def score(record: Record, study: Study) -> float:
    """What ranks."""
    model, split, metric = _ranking(record, study)
    return record.scores[model][split][metric]


def _ranking(record: Record, study: Study) -> tuple[str, str, str]:
    """Model, split and metric that rank."""
    return study.table.scores[0], study.table.splits.get(record.run.benchmark, ("test",))[0], study.table.metrics[0]


def _images(archive: Archive, record: Record, study: Study) -> Sequence[float]:
    model, split, metric = _ranking(record, study)
    table = archive.image_table(record, model, split)
    scores = table.scores.get(metric) if table else None
    if scores is None:
        raise Refused(f"rerun: {record.key} has no scores by image")
    return list(scores)


def _distance(first: Sequence[float], second: Sequence[float]) -> float:
    """Between the scores of the same images, which all seeds of a study share; infinite for other images."""
    return math.dist(first, second) if len(first) == len(second) else math.inf


def _row(record: Record, study: Study) -> tuple[object, ...]:
    """What the runs of one row on one benchmark share."""
    run = record.run
    free = choices_of(run.method, {}, study.choose)
    options = {name: value for name, value in run.method_config.items() if name not in free}
    return run.method, str(options), run.benchmark, run.backbone, weights_of(run.checkpoint), run.protocol_hash


def _words(row: Row) -> str:
    """A row as a command line has it."""
    options = ",".join(f"{name}={_word(value)}" for name, value in row.options.items())
    return f"{row.method}[{options}]" if options else row.method


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _run(*words: str) -> tuple[int, str]:
    """Exit code and output of a command; what it says besides goes to the terminal."""
    with redirect_stdout(StringIO()) as out:
        code = command([*words])
    return code, out.getvalue()


if __name__ == "__main__":
    sys.exit(main())
