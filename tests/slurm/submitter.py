"""Submit runs of the stand-in experiment: ``python -m tests.slurm.submitter RESULTS PROFILE COUNT RULES``."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

from harness.dispatch import sweeps
from harness.dispatch.run_jobs import make_executor
from harness.dispatch.target import target_of
from harness.system.errors import UsageError
from tests.harness.dispatch.helpers import make_job, with_standin


def main() -> int:
    results, profile, count, rules = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background inherits Ctrl-C ignored
    sweeps.contents_of_command = with_standin(sweeps.contents_of_command)
    executor = make_executor(target_of("slurm", cluster=profile), results=results)
    jobs = [make_job(results, seed=seed, **rules) for seed in range(count)]
    print("ready", flush=True)
    try:
        elsewhere = executor.submit(jobs, command="test")
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"submitted {count - len(elsewhere)} elsewhere {len(elsewhere)}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
