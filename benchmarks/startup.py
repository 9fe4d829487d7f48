"""How long a user waits before anything happens: ``--help`` of every verb, and the plan of 1,008 runs.

``python -m benchmarks.startup [--rounds 5] [--json FILE]``: processor time of fresh processes, user and system, which is what
one waits where nobody else computes.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tabulate import tabulate

from benchmarks.child import used
from benchmarks.saving import add_json, save
from harness.cli.verbs import VERBS
from harness.planning.samples import sample_writer
from harness.registry import SEGMENTED

SEEDS = 28  # x 4 methods x 9 benchmarks = 1,008 runs
PLAN = ["--protocol", "demo", "--methods", "lora,naslora,bitfit,decoder", "--datasets", "all", "--seeds", str(SEEDS)]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--verbs", default=",".join(VERBS), help="whose --help (default: all)")
    add_json(parser)
    options = parser.parse_args(argv)
    commands = {f"{verb} --help": ["-m", "harness", verb, "--help"] for verb in options.verbs.split(",")}
    with tempfile.TemporaryDirectory() as folder:
        for name in SEGMENTED:  # a plan writes none
            sample_writer(Path(folder))(name)
        commands[f"run --plan, {4 * 9 * SEEDS} runs"] = ["-m", "harness.run", *PLAN, "--results", folder, "--plan"]
        rows = [used(name, command, rounds=options.rounds) for name, command in commands.items()]
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".2f"))
    save(options.json, options=options, measured={"rows": rows})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
