"""One chunk to sbatch: submitit's executor with our worker as command."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness.dispatch.slurm.profile import ClusterProfile, Shape, minutes
from harness.dispatch.submitting import worker_arguments
from harness.dispatch.sweeps import Chunk
from harness.system.files import write_atomically

LEFT_TO_THE_SHELL = ("account", "partition", "qos", "constraint")
"""What clusters have their users export as SBATCH_*: that holds where the profile does not say."""


def array_of(chunk: Chunk, profile: ClusterProfile, frozen: Path) -> Any:
    """submitit's executor for one chunk, with our worker as command: the chunk on disk takes the place of pickles."""
    from submitit import SlurmExecutor as SubmititSlurm

    command = f"{profile.python or shlex.quote(sys.executable)} {shlex.join(worker_arguments(chunk, frozen))}"
    shape = Shape(**{name: value for name, value in chunk.shape.items() if name != "gpus"})
    options: dict[str, Any] = {
        "account": shape.account,
        "partition": shape.partition,
        "qos": shape.qos,
        "gres": shape.gres,
        "constraint": shape.constraint,
        "mem": shape.mem,
    }

    class Array(SubmititSlurm):
        def begin(self) -> Any:
            with tempfile.TemporaryDirectory() as private:  # nobody changes the script before sbatch has read it
                self.folder = Path(private)
                job = self._submit_command(command)
                write_atomically(logs / f"{job.job_id}_submission.sh", job.paths.submission_file.read_bytes())
            return job

        def _make_submission_command(self, submission_file_path: Path) -> list[str]:
            # Inside a job, sbatch would inherit that job's limits from the environment; and it takes SBATCH_* over the script.
            kept = {"SLURM_CONF", *(f"SBATCH_{name.upper()}" for name in LEFT_TO_THE_SHELL if not options.get(name))}
            inherited = [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_")) and name not in kept]
            return ["env", *(f"--unset={name}" for name in inherited), "sbatch", str(submission_file_path)]

    logs = chunk.path.parent / "logs"
    said = str(logs).replace("%", "%%")  # which SLURM takes for a placeholder, and submitit leaves
    executor = Array(folder=logs)
    executor.update_parameters(
        **{name: value for name, value in options.items() if value},
        job_name=chunk.name,
        comment=chunk.sweep,
        time=minutes(shape.time),
        nodes=1,
        ntasks_per_node=shape.gpus_per_run,
        cpus_per_task=shape.cpus,
        signal_delay_s=profile.signal_seconds,
        array_parallelism=profile.parallelism,
        stderr_to_stdout=True,
        setup=list(profile.setup),
        # The step may be killed as a whole; what it could not say is said after it.
        teardown=["status=$?", f"[ $status = 0 ] || {command} --after $status", "exit $?"],
        # since SLURM 22.05 srun does not inherit the CPUs of a task
        srun_args=[
            f"--output={said}/%A_%a_%t_log.out",
            f"--cpus-per-task={shape.cpus}",
            *(["--kill-on-bad-exit=1"] if shape.gpus_per_run > 1 else []),
        ],
        additional_parameters={
            "requeue": True,
            "output": f"{said}/%A_%a_0_log.out",
            **{k: v == "true" or v for k, v in profile.extra.items()},
        },
        wckey=None,
    )
    executor.parameters["map_count"] = len(chunk.runs)
    return executor
