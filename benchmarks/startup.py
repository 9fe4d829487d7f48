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

HARNESS = Path(__file__).parents[1] / "harness"
SEEDS = 28  # x 4 methods x 9 benchmarks = 1,008 runs
PLAN = ["--protocol", "demo", "--methods", "lora,naslora,bitfit,decoder", "--datasets", "all", "--seeds", str(SEEDS)]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args(argv).rounds
    verbs = sorted(path.stem for path in HARNESS.glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))
    commands = {f"{verb} --help": ["-m", f"harness.{verb}", "--help"] for verb in verbs}
    with tempfile.TemporaryDirectory() as folder:
        plan = ["-m", "harness.run", *PLAN, "--results", folder, "--plan"]
        _run(plan)  # writes the sample data that later plans find
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
