"""`sam-peft doctor --device cuda --accept` on the pretended GPU: its parts, and how it goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from harness import accept
from harness.cli import doctor
from harness.costing import instruments
from harness.datasets.samples import write_samples
from harness.dispatch.run_states import QUEUED, RUNNING, RunState, ShowStates
from harness.dispatch.sweeps import names_of_run
from harness.models.decoders import DECODERS
from harness.planning.request import Job
from harness.planning.work import training_bytes
from harness.system.errors import UsageError
from tests.rehearsal.device import pretended
from tests.rehearsal.test_faults import left_on_the_processor, planted, read_as_a_number


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> accept.Machine:
    small = {"batch_size": 2, "epoch_images": 8, "image_size": 64, "val_limit": 2, "test_limit": 2}
    monkeypatch.setattr(accept, "SHORT_RUN", {**accept.SHORT_RUN, **small})
    device, report = torch.device("cuda", 0), lambda _: None
    folders: dict[str, Any] = {"data": None, "results": tmp_path, "shared": tmp_path / "shared"}
    return accept.Machine(device=device, backbones=["tiny"], methods=["lora"], cluster="", report=report, **folders)


def tried(part: accept.AcceptancePart, machine: accept.Machine) -> tuple[dict[str, Any], list[str]]:
    """What a part measured, and what is not right."""
    found: dict[str, Any] = {}
    wrong = list(part(machine, found))
    return found, wrong


@pytest.mark.slow
def test_steps_under_every_decoder_are_examined(machine: accept.Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accept, "examine_gpu", lambda **_: {"failures": ["as found"]})
    with pretended():
        assert tried(accept.examined, machine)[1] == ["as found"]
        planted(monkeypatch, left_on_the_processor)
        wrong = tried(accept.examined, machine)[1]
    assert {decoder for decoder in DECODERS if any(f"under {decoder}, bf16" in line for line in wrong)} == {
        *DECODERS[1:]
    }


def test_images_to_feed_are_those_of_the_benchmark_that_is_there(machine: accept.Machine, tmp_path: Path) -> None:
    write_samples("kvasir", tmp_path / "data")
    assert machine.job(data=tmp_path / "data").dataset_root.startswith(str(tmp_path / "data"))
    assert not machine.job().dataset_root.startswith(str(tmp_path / "data"))
    with pytest.raises(UsageError, match="no benchmark of a multiclass task"):
        accept.benchmark_below(tmp_path, "multiclass")


def test_waits_of_a_step_are_found(machine: accept.Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accept, "ROWS", {"lora": {}, "convlora": {}})
    with pretended():
        found, wrong = tried(accept.free_of_waits, machine)
        assert wrong == []
        assert found.keys() == {"convlora"}
        planted(monkeypatch, read_as_a_number)
        (line,) = tried(accept.free_of_waits, machine)[1]
    assert line.startswith("a step of lora waits at harness/")


@pytest.mark.slow
def test_a_requeue_changes_no_loss(machine: accept.Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    with pretended():
        found, wrong = tried(accept.requeued, machine)
        assert wrong == []
        assert all(seen["deviation"] == 0 for seen in found.values())


@pytest.mark.slow
def test_scores_on_the_processor_are_those_of_the_gpu(machine: accept.Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    with pretended():
        found, wrong = tried(accept.on_the_processor, machine)
        assert wrong == []
        assert found.keys() > {"score dice", "unmerged", "merged", "exported"}
        monkeypatch.setattr(accept, "OFF_SCORE", -1.0)
        assert len(tried(accept.on_the_processor, machine)[1]) == len(found)


@pytest.mark.slow
def test_steps_are_held_against_the_plan(machine: accept.Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accept, "ROWS", {"naslora": {"search_start_epoch": 0}})
    monkeypatch.setattr(accept, "ROUNDS", 1)
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    settings = {"allocator_settings": {"expandable_segments": False}}
    with pretended(), patch.object(torch.cuda.memory, "_snapshot", lambda: settings):
        found, wrong = tried(accept.as_planned, machine)
        assert [line.partition(":")[0] for line in wrong[:2]] == ["naslora on tiny"] * 2
        assert "expandable_segments" in wrong[2]
        seconds, size = found["naslora on tiny"]["measured"]
        monkeypatch.setattr(accept, "step_seconds", lambda run, device: seconds)
        monkeypatch.setattr(accept, "OFF_TIME", 100.0)
        monkeypatch.setattr(accept, "training_bytes", lambda run, kinds: size)
        settings["allocator_settings"]["expandable_segments"] = True
        assert tried(accept.as_planned, machine)[1] == []


def test_time_in_several_kernels_at_once_counts_once_and_the_processors_not() -> None:
    assert instruments.busy_seconds([(0, 4), (6, 8), (1, 2), (7, 9)]) == pytest.approx(7e-9)
    with profile(activities=[ProfilerActivity.CPU]) as on_the_processor:
        torch.ones(3).add(1)
    assert on_the_processor.events()
    assert instruments.kernels(on_the_processor) == []


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "right"), [(0.0, False), (1e6, True)])
def test_the_busy_share_is_that_of_the_second_epoch(seconds, right, machine, monkeypatch: pytest.MonkeyPatch) -> None:
    profiles: list[Any] = []

    def profiled(**activities: Any) -> Any:
        profiles.append(activities)
        return nullcontext()

    monkeypatch.setattr(instruments, "profile", profiled)
    monkeypatch.setattr(instruments, "kernels", lambda _: [(0, int(seconds * 1e9))])
    monkeypatch.setattr(accept, "FED", {"epoch_images": 4})
    with pretended():
        found, wrong = tried(accept.kept_busy, machine)
    assert (wrong == []) is right
    assert [seen["benchmark"] for seen in found.values()][1] == "trans10k_v2"
    assert all(seen.keys() >= {"training", "evaluation"} for seen in found.values())
    assert len(profiles) == 4


@pytest.mark.parametrize("attempts", [1, 2])
def test_one_of_two_runs_in_the_queue_is_requeued(attempts, machine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    class Queue:
        slurm = SimpleNamespace(ask=asked.append)

        def submit(self, jobs: list[Job]) -> None:
            self.runs = {job.run.key: job.run for job in jobs}

        def wait(self, *, on_change: ShowStates) -> dict[str, RunState]:
            def states(state: str, **seen: Any) -> dict[str, RunState]:
                return {
                    key: RunState(**names_of_run(run, key=key), state=state, **seen) for key, run in self.runs.items()
                }

            on_change(states(QUEUED))
            on_change(states(RUNNING, task="7_0", done=0.1))
            on_change(states(RUNNING, task="7_0", done=0.2))
            return states("OK", attempts=attempts)

    monkeypatch.setattr(accept, "make_executor", lambda target, results: Queue())
    found, wrong = tried(accept.queued, replace(machine, cluster="gpu"))
    assert asked == [["scontrol", "requeue", "7_0"]]
    assert len(found) == 2
    assert bool(wrong) is (attempts == 1)


TOKENS = 36
"""Of an image in tiny's padded windows at 64 px."""


@pytest.mark.parametrize(("room", "ends"), [pytest.param(8, "OK", marks=pytest.mark.slow), (1, "OOM")])
def test_after_too_large_a_batch_a_small_one_runs(room, ends, machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_room_for_few(x: Tensor) -> Tensor:
        if x[..., 0].numel() > room * TOKENS:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x

    planted(monkeypatch, with_room_for_few)
    of_sixteen = training_bytes(machine.job(batch_size=16).run)
    properties = SimpleNamespace(total_memory=int(of_sixteen / 1.5))
    with pretended(), patch.object(torch.cuda, "get_device_properties", lambda _: properties):
        found, wrong = tried(accept.beyond_memory, machine)
    assert (found["images"], found["code"]) == (16, "OOM")
    assert "--set activation_checkpointing=true, or a smaller batch_size" in found["advice"]
    assert [f"ends as {ends}: " in line for line in wrong] == ([] if ends == "OK" else [True])


def test_a_machine_is_right_part_by_part_and_goes_on(tmp_path: Path, machine, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []

    def part(name: str, *wrong: str, error: Exception | None = None) -> tuple[str, accept.AcceptancePart]:
        def examine(_: accept.Machine, found: dict[str, Any]) -> Iterator[str]:
            begun.append(name)
            if error is not None:
                raise error
            yield from wrong

        return name, examine

    def lines() -> list[str]:
        with pretended():
            return [line for line, _ in accept.accept(machine, tmp_path / "gpu.json")]

    failing = part("c", error=RuntimeError("CUDA error: unspecified launch failure"))
    monkeypatch.setattr(accept, "ACCEPTANCE_PARTS", {"1": part("a"), "2": part("b", "slow", "full"), "3": failing})
    first = lines()
    assert first[:2] == ["1. a: right", "2. b: not right: slow; full"]
    assert "launch failure" in first[2]
    monkeypatch.setattr(
        accept, "ACCEPTANCE_PARTS", {**accept.ACCEPTANCE_PARTS, "3": part("d", error=ValueError("odd"))}
    )
    assert lines() == [*first[:2], "3. d: not right: odd"]
    assert begun == ["a", "b", "c", "d"]
    assert lines()[2] == "3. d: not right: odd"
    monkeypatch.setattr(accept, "contents_of_command", lambda: {"other": b"code"})
    lines()
    assert begun == ["a", "b", "c", "d", "a", "b", "d"]


def test_the_command_prints_parts_and_ends_with_1_where_one_is_not_right(tmp_path, monkeypatch, capsys) -> None:
    parts: dict[str, Any] = {"1": ("a", lambda machine, found: []), "2": ("b", lambda machine, found: ["odd"])}
    monkeypatch.setattr(accept, "ACCEPTANCE_PARTS", parts)
    command = ["--device", "cuda", "--accept", "--out", str(tmp_path / "gpu.json")]
    with pretended():
        assert doctor.main(command) == 1
        assert capsys.readouterr().out == "1. a: right\n2. b: not right: odd\n"
        monkeypatch.setattr(accept, "ACCEPTANCE_PARTS", {"1": parts["1"]})
        assert doctor.main(command) == 0
    held = json.loads((tmp_path / "gpu.json").read_text())
    assert held["machine"]["gpu"] == "Pretended GPU"
    assert held["parts"]["2"]["wrong"] == ["odd"]
