"""How long a user waits before anything happens: ``--help`` of every verb, and the plan of 1,000 runs.

``python -m benchmarks.startup [--rounds 5]``; processes are fresh each time, the best and the median are printed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tabulate import tabulate

from datasets import BUILTIN
from harness.planning.samples import sample_writer
from harness.verbs import VERBS

SEEDS = 28  # x 4 methods x 9 benchmarks = 1,008 runs
PLAN = ["--protocol", "demo", "--methods", "lora,naslora,bitfit,decoder", "--datasets", "all", "--seeds", str(SEEDS)]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args(argv).rounds
    commands = {f"{verb} --help": ["-m", "harness", verb, "--help"] for verb in VERBS}
    with tempfile.TemporaryDirectory() as folder:
        plan = ["-m", "harness.run", *PLAN, "--results", folder, "--plan"]
        for name in BUILTIN:  # a plan writes none
            sample_writer(Path(folder))(name)
        commands[f"run --plan, {4 * 9 * SEEDS} runs"] = plan
        rows = []
        for name, command in commands.items():
            seconds = [_run(command) for _ in range(rounds)]
            rows.append([name, f"{min(seconds):.2f}", f"{statistics.median(seconds):.2f}"])
    print(tabulate(rows, headers=["command", "best (s)", "median (s)"], tablefmt="github", disable_numparse=True))
    return 0


def _run(command: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


if __name__ == "__main__":
    raise SystemExit(main())
