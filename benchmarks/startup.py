"""How long a user waits before anything happens: ``--help`` of every verb, and the plan of 1,008 runs; where imports take it.

``python -m benchmarks.startup [--rounds 5] [--json FILE]``: processor time of fresh processes, user and system, which is what
one waits where nobody else computes. ``--imports`` adds the seconds of imports by package, of ``status --help`` and of a whole run of the
demo (``python -X importtime``, wall time, a module without those that it imports).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tabulate import tabulate

from benchmarks.child import used
from benchmarks.saving import add_json, save
from harness.cli.verbs import VERBS
from harness.planning.data import sample_writer
from harness.registry import SEGMENTED

SEEDS = 28  # x 4 methods x 9 benchmarks = 1,008 runs
PLAN = ["--protocol", "demo", "--methods", "lora,naslora,bitfit,decoder", "--datasets", "all", "--seeds", str(SEEDS)]
DEMO = ["--protocol", "demo", "--methods", "lora", "--datasets", "kvasir", "--executor", "inline", "--set", "epochs=1"]
SHOWN_S = 0.05
"""A package below it in all columns is one of the others."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--verbs", default=",".join(VERBS), help="whose --help (default: all)")
    parser.add_argument("--imports", action="store_true", help="also imports by package; runs the demo once")
    add_json(parser)
    options = parser.parse_args(argv)
    commands = {f"{verb} --help": ["-m", "harness", verb, "--help"] for verb in options.verbs.split(",")}
    with tempfile.TemporaryDirectory() as folder:
        for name in SEGMENTED:  # a plan writes none
            sample_writer(Path(folder))(name)
        commands[f"run --plan, {4 * 9 * SEEDS} runs"] = ["-m", "harness.run", *PLAN, "--results", folder, "--plan"]
        rows = [used(name, command, rounds=options.rounds) for name, command in commands.items()]
        measured: dict[str, object] = {"rows": rows}
        print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".2f"))
        if options.imports:
            asked = {
                "status --help": ["-m", "harness", "status", "--help"],
                "run of the demo": ["-m", "harness.run", *DEMO, "--results", folder],
            }
            by_command = {name: imports(command) for name, command in asked.items()}
            print(f"\n{packages_table(by_command)}")
            measured["imports"] = by_command
    save(options.json, options=options, measured=measured)
    return 0


def imports(command: list[str]) -> dict[str, float]:
    """Package -> seconds of importing its modules in ``python COMMAND``."""
    done = subprocess.run([sys.executable, "-X", "importtime", *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip().splitlines()[-1]}")
    return by_package(done.stderr)


def by_package(text: str) -> dict[str, float]:
    """Top-level package -> its own seconds, most first, of what ``-X importtime`` tells; the standard library is one."""
    spent: Counter[str] = Counter()
    for line in text.splitlines():
        microseconds, _, name = line.removeprefix("import time:").partition("|")
        if line.startswith("import time:") and microseconds.strip().isdigit():
            package = name.rpartition("|")[2].strip().partition(".")[0]
            spent["standard library" if package in sys.stdlib_module_names else package] += int(microseconds)
    return {name: microseconds / 1e6 for name, microseconds in spent.most_common()}


def packages_table(by_command: dict[str, dict[str, float]]) -> str:
    """A row a package, a column a command; the last sums up."""
    columns = list(by_command.values())
    names = {name: None for column in reversed(columns) for name in column}
    shown = [name for name in names if any(column.get(name, 0.0) >= SHOWN_S for column in columns)]
    rows = [[name, *(column.get(name) for column in columns)] for name in shown]
    rest = [sum(seconds for name, seconds in column.items() if name not in shown) for column in columns]
    rows += [["others", *rest], ["all", *(sum(column.values()) for column in columns)]]
    return tabulate(rows, headers=["imports (s)", *by_command], tablefmt="github", floatfmt=".2f")


if __name__ == "__main__":
    raise SystemExit(main())
