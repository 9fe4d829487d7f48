"""A training from the command to its results, against what a user would write instead, each in a process of its own.

``python -m benchmarks.end_to_end --data DIR --backbone vit_b --image-size 1024 --updates 8 --precision bf16 --rounds 3 --json FILE``

Every candidate trains LoRA (rank 3 on every ``qkv``, and the mask decoder) on the same images of Kvasir-SEG for the same number of
updates with the same batch, precision and threads, validates half-way and at the end, tests the better state and writes its results.
Weights are random, MobileSAM's those of ``--checkpoint`` where it is given.

- ``this harness``: ``python -m harness.run`` into an empty results folder, with an empty cache of the user. It also freezes its code,
  fingerprints the data, writes checkpoints, scores by image, masks and a table, and computes eight metrics at the image's size. Where the
  first validation was better than the second it tests the last state besides; the peer of that round then tests as often.
- ``this harness, warm``: the same command where an earlier run left ``cache`` (decoded images, tokens of frozen stages);
  the user's own cache folder of that run stays too.
- ``transformers`` (SAM) and ``MobileSAM`` (mobile_sam): `benchmarks.plain_training`, which says what they do; they compute IoU alone and
  keep nothing from one round to the next.

Wall and processor time are those of the process and its children, peak memory of the largest of them (``ru_maxrss``). Nobody can empty the
system's own cache of files: every round but the first finds libraries and images in memory, for all candidates alike.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.child import Usage, measured
from benchmarks.saving import add_json, save

OURS, WARM = "this harness", "this harness, warm"
PEERS = {"vit_b": "transformers", "tiny": "transformers", "mobile_sam": "MobileSAM"}
SCRIPTS = {"transformers": "trainer", "MobileSAM": "official"}
RATE = 1e-4
"""Of every candidate: at the protocol's own, MobileSAM's pretrained decoder predicts nothing after a few dozen updates."""
COLUMNS = {
    "wall time (s)": "wall_s",
    "processor time (s)": "processor_s",
    "peak memory (GiB)": "peak_gib",
    "to the first update (s)": "first_update_s",
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, help="holds Kvasir-SEG")
    parser.add_argument("--backbone", choices=tuple(PEERS), default="vit_b")
    parser.add_argument("--checkout", default=os.environ.get("MOBILE_SAM_CHECKOUT"), metavar="DIR",
                        help="of github.com/ChaoningZhang/MobileSAM (default: $MOBILE_SAM_CHECKOUT)")  # fmt: skip
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="of mobile_sam, as safetensors (default: random)"
    )
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    for name, count, what in (
        ("image-size", 1024, "pixels a side"),
        ("updates", 8, "an even number"),
        ("batch", 1, "images an update"),
        ("images", 200, "of the training split"),
        ("val", 20, "images"),
        ("test", 40, "images"),
        ("rounds", 3, "the same order in each"),
        ("threads", len(os.sched_getaffinity(0)), "of every candidate"),
    ):
        parser.add_argument(f"--{name}", type=int, default=count, help=f"{what} (default: {count})")
    parser.add_argument("--cold-only", action="store_true", help="leave out the harness with its cache, for less time")
    add_json(parser)
    options = parser.parse_args(argv)
    if options.data is None or not (options.data / "Kvasir-SEG").is_dir():
        parser.error(f"--data {options.data}: give the folder that holds Kvasir-SEG")
    if options.updates < 2 or options.updates % 2:
        parser.error(f"--updates {options.updates}: give an even number, half of them before each validation")
    peer = PEERS[options.backbone]
    if options.checkpoint and peer != "MobileSAM":
        parser.error("--checkpoint FILE is for mobile_sam; others start from random weights")
    if peer == "MobileSAM" and not options.checkout:
        parser.error("--checkout DIR is needed for mobile_sam: a checkout of github.com/ChaoningZhang/MobileSAM")
    ours = (OURS,) if options.cold_only else (OURS, WARM)
    rounds: dict[str, list[Usage]] = {name: [] for name in (*ours, peer)}
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory(prefix="end-to-end-") as folder:
            results, out = Path(folder, "results"), Path(folder, "peer")
            out.mkdir()
            for name in ours:
                rounds[name].append(_harness(options, results, environment=_environment(options, Path(folder))))
                for path in results.iterdir():  # all but what a later run finds useful
                    if path.name != "cache":
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
            tests = int(rounds[OURS][-1]["tests"])
            rounds[peer].append(_peer(options, peer, out, tests=tests, environment=_environment(options, Path(folder))))
        took = ", ".join(f"{name} {usages[-1]['wall_s']:.1f} s" for name, usages in rounds.items())
        print(f"round {number + 1}: {took}", file=sys.stderr, flush=True)
    import torch

    from harness.costing.instruments import used_by_others  # only now: what measures other processes stays small

    options.checkpoint = options.checkpoint and options.checkpoint.name
    options.data = options.checkout = None  # paths of this machine
    summary = {
        "shared": used_by_others(torch.device("cpu")),
        "rounds": rounds,
        "ratios": {f"{name} / {peer}": ratios(rounds[name], rounds[peer]) for name in ours},
    }
    save(options.json, options=options, measured=summary)
    given = {name: str(value) for name, value in vars(options).items()}
    print(page([{"options": given, **summary}]))
    return 0


def _environment(options: argparse.Namespace, folder: Path) -> dict[str, str]:
    return {
        "OMP_NUM_THREADS": str(options.threads),
        "XDG_CACHE_HOME": str(folder / "user"),
        "SAM_PEFT_SETTINGS": "none",
        "HF_HUB_OFFLINE": "1",
    }


def _harness(options: argparse.Namespace, results: Path, *, environment: Mapping[str, str]) -> Usage:
    rules = {
        "image_size": options.image_size, "batch_size": options.batch, "precision": options.precision, "epochs": 2,
        "epoch_images": options.updates // 2 * options.batch, "train_limit": options.images, "val_limit": options.val,
        "test_limit": options.test, "merge": "[]", "select_every": 1, "lr": RATE,
    }  # fmt: skip
    words = [
        "--protocol", "standard", "--methods", "lora", "--datasets", "kvasir", "--data", str(options.data.resolve()),
        "--backbone", options.backbone, "--checkpoint", str(options.checkpoint or "none"),
        "--workers", "1", "--results", str(results),
    ]  # fmt: skip
    words += [word for name, value in rules.items() for word in ("--set", f"{name}={value}")]

    def updated() -> float | None:
        """The file in which a run says where it is: its first word of training follows the first update."""
        for path in results.glob("state/*/progress.json"):
            try:
                progress = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if progress.get("stage") == "training" and progress.get("step", 0) >= 1:
                return float(progress["at"])
        return None

    usage = measured(OURS, ["-m", "harness.run", *words], environment=environment, watch=updated)
    (path,) = (results / "records").glob("*.json")
    record = json.loads(path.read_text(encoding="utf-8"))
    return {**usage, "tests": 1.0 if record["selected_epoch"] == len(record["history"]) else 2.0}


def _peer(options: argparse.Namespace, name: str, out: Path, *, tests: int, environment: Mapping[str, str]) -> Usage:
    words = [
        SCRIPTS[name], "--tests", str(tests), "--data", str(options.data), "--out", str(out),
        "--backbone", options.backbone, "--precision", options.precision, "--lr", str(RATE),
        *(["--checkout", options.checkout] if options.checkout else []),
        *(["--checkpoint", str(options.checkpoint)] if options.checkpoint else []),
    ]  # fmt: skip
    for option in ("image_size", "batch", "updates", "images", "val", "test"):
        words += [f"--{option.replace('_', '-')}", str(getattr(options, option))]

    def updated() -> float | None:
        path = out / "first"
        written = path.read_text(encoding="utf-8") if path.exists() else ""  # empty while it is being written
        return float(written) if written else None

    return measured(name, ["-m", "benchmarks.plain_training", *words], environment=environment, watch=updated)


def ratios(ours: Sequence[Usage], theirs: Sequence[Usage]) -> dict[str, dict[str, float | None]]:
    """Measure -> the ratio of ours to theirs, paired by round, with its 95 % interval (none for one round)."""
    from harness.statistics import paired_ratio

    return {
        key: paired_ratio([usage[key] for usage in ours], [usage[key] for usage in theirs])._asdict()
        for key in COLUMNS.values()
    }


def page(files: Sequence[Mapping[str, Any]]) -> str:
    """The table of files of ``--json``: medians, and wall time by the peer's with its interval."""
    from tabulate import tabulate

    rows = []
    for file in files:
        peer = PEERS[file["options"]["backbone"]]
        for name, usages in file["rounds"].items():
            cells = [
                f"{_median(usages, key):.2f}" if key == "peak_gib" else f"{_median(usages, key):.1f}"
                for key in COLUMNS.values()
            ]
            share = file["ratios"].get(f"{name} / {peer}")
            rows.append([setting(file), name, *cells, interval(share["wall_s"]) if share else ""])
    heads = ["training", "by", *COLUMNS, "wall time / peer's"]
    return tabulate(rows, headers=heads, tablefmt="github", disable_numparse=True)


def setting(file: Mapping[str, Any]) -> str:
    given = file["options"]
    return f"{given['backbone']}, {given['image_size']} px, {given['precision']}, {given['updates']} updates of {given['batch']}"


def _median(rounds: Sequence[Usage], key: str) -> float:
    return statistics.median(usage[key] for usage in rounds)


def interval(ratio: Mapping[str, float | None]) -> str:
    bounds = "" if ratio["low"] is None else f" [{ratio['low']:.2f}, {ratio['high']:.2f}]"
    return f"**{ratio['value']:.2f}**{bounds}"


if __name__ == "__main__":
    raise SystemExit(main())
