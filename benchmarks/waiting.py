"""How long OpenMP threads should spin before they sleep: training steps under several settings, in turns.

``python -m benchmarks.waiting [--load 0] [--rounds 5] [--json FILE]``. Each setting has a process of its own, which does
one step when it is told to while the others sleep; ``--load N`` has N processes multiply matrices all the while, one
thread each. A setting is judged by its median against the best one of the same session: within 1.05 on a quiet machine,
within 1.3 on a busy one.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from tabulate import tabulate

from benchmarks.saving import add_json, save
from harness.system.machine import cores

WAITS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
BUSY = "import torch\ntorch.set_num_threads(1)\na = torch.randn(700, 700)\nwhile True: a @ a"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="timm/vit_small_patch14_dinov2")
    parser.add_argument("--image-size", type=int, default=252)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="of one turn")
    parser.add_argument("--load", type=int, default=0, help="processes that keep the machine busy meanwhile")
    parser.add_argument("--spins", default="0,1000,3000,10000,30000,100000", help="values of GOMP_SPINCOUNT")
    parser.add_argument("--without", default="", help="settings to leave out: default takes most of a busy session")
    parser.add_argument("--contestant", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cpu", help=argparse.SUPPRESS)  # what a saved file says of itself
    add_json(parser)
    options = parser.parse_args(argv)
    if options.contestant:
        return _contestant(options)
    threads = str(cores())
    settings: dict[str, dict[str, str]] = {"default": {}, "passive": {"OMP_WAIT_POLICY": "passive"}}
    settings |= {f"spin {count}": {"GOMP_SPINCOUNT": count} for count in options.spins.split(",")}
    settings = {name: {"OMP_NUM_THREADS": threads, **values} for name, values in settings.items()}
    settings["one thread"] = {"OMP_NUM_THREADS": "1"}
    settings = {name: values for name, values in settings.items() if name not in options.without.split(",")}
    with contextlib.ExitStack() as stack:
        processes = {name: stack.enter_context(_started(values, options)) for name, values in settings.items()}
        for _ in range(options.load):
            busy = stack.enter_context(subprocess.Popen([sys.executable, "-c", BUSY]))
            stack.callback(busy.kill)
        seconds: dict[str, list[float]] = {name: [] for name in processes}
        for number in range(options.rounds + 1):
            for name, process in processes.items():
                value = _turn(process)
                if number:  # the first warms up
                    seconds[name].append(value)
            print(f"round {number} of {options.rounds}", file=sys.stderr)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    best = min(medians.values())
    rows = [[name, f"{value:.3f}", f"{value / best:.2f}"] for name, value in medians.items()]
    print(f"{threads} cores, {options.load} busy processes of ours, load of the machine {os.getloadavg()[0]:.1f}")
    print(tabulate(rows, headers=["setting", "turn (s)", "/ best"], tablefmt="github", disable_numparse=True))
    save(options.json, options=options, measured={"seconds": seconds, "machine load": os.getloadavg()[0]})
    return 0


@contextlib.contextmanager
def _started(values: dict[str, str], options: argparse.Namespace) -> Iterator[Any]:
    plain = {name: value for name, value in os.environ.items() if name not in WAITS}
    arguments = ["--contestant", "--backbone", options.backbone, "--image-size", str(options.image_size)]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.waiting", *arguments, "--steps", str(options.steps)],
        env={**plain, **values},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _turn(process: Any) -> float:
    process.stdin.write("go\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def _contestant(options: argparse.Namespace) -> int:
    import time

    import torch

    from benchmarks.step import lora_contestant

    options.batch, options.precision, options.cpu_time = 1, "fp32", False
    model = lora_contestant(options, torch.device("cpu"))
    for _ in sys.stdin:
        begun = time.monotonic()
        for _ in range(options.steps):
            model.step()
        print(time.monotonic() - begun, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
