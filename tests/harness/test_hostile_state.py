"""State and sweep files that somebody else, a later version or a broken disk has written: one line, never a traceback."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from harness import run
from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.cli import status
from harness.dispatch import worker
from harness.dispatch.attempts import Exhausted, Held, Holder, Lease, attempts, state_folder
from harness.dispatch.run_states import survey
from harness.dispatch.sweeps import read_chunk
from harness.system.errors import UsageError
from tests.harness.dispatch.helpers import make_job, submitted
from tests.harness.planned import job_of

SWEEP = "20260101-000000-abcd"
VERBS: tuple[list[str], ...] = ([], ["--failed"], ["--json"], ["--sweep", "last"], ["--logs", "{key}"])


def results_folder(root: Path) -> Path:
    """Two runs of a local sweep whose processes are gone: one finished, one interrupted at its second start."""
    jobs = [make_job(root, seed=seed) for seed in (0, 1)]
    gone = replace(Holder.here(), ticks=1)
    submitted(root, jobs, executor="local", limit=10, submitter=gone).close("done")
    done, open_run = jobs
    RecordStore(root).write(Record(run=done.run, key=done.run.key, code="OK", cost={"wall_time_s": 60.0}))
    for _ in range(2):
        lease = Lease.acquire(state_folder(root, open_run.run.key), holder=gone)
        lease.release("interrupted", "asked to stop")
    (state_folder(root, open_run.run.key) / "attempt.2.log").write_text("a log\n")
    position = {"stage": "training", "epoch": 1, "epochs": 2, "step": 1, "steps": 4, "loss": 0.5}
    (state_folder(root, open_run.run.key) / "progress.json").write_text(json.dumps(position))
    return root


def open_key(root: Path) -> str:
    return make_job(root, seed=1).run.key


def shown(root: Path, *words: str) -> tuple[int, str]:
    """Exit code and output of the status verb; what nobody foresaw is raised."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = status.main(["--results", str(root), "--debug", *(word.format(key=open_key(root)) for word in words)])
    return code, out.getvalue()


def _later_version(path: Path) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "colour": "blue", "holder": {**content["holder"], "rack": 7}}))


def _link_to_zeros(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _written(text: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text(text)

    write.__name__ = f"_written_{text[:12]}"
    return write


def _value(name: str, value: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))

    write.__name__ = f"_{name}_{str(value)[:12]}"
    return write


WRECKED = (
    _pipe,
    _folder,
    _link_to_zeros,
    _sparse,
    _written(""),
    _written("[" * 200_000),
    _value("seen", 10**400),
    _value("holder", "me"),
)


def test_a_lease_of_a_later_version_is_still_a_lease(tmp_path: Path) -> None:
    root = results_folder(tmp_path)
    folder = state_folder(root, open_key(root))
    Lease.acquire(folder, holder=Holder.here())
    _later_version(folder / "attempt.3.json")
    assert [start.number for start in attempts(folder)] == [1, 2, 3]
    assert survey(root).runs[open_key(root)].state == "running"
    with pytest.raises(Held):
        Lease.acquire(folder, holder=Holder.here())


@pytest.mark.parametrize("wreck", WRECKED)
def test_a_wrecked_attempt_is_named_and_the_run_can_be_taken_over(wreck: Callable[[Path], None], tmp_path) -> None:
    root = results_folder(tmp_path)
    folder = state_folder(root, open_key(root))
    Lease.acquire(folder, holder=replace(Holder.here(), ticks=1))
    wreck(folder / "attempt.3.json")
    code, text = shown(root)
    assert code == 0
    (line,) = [line for line in text.splitlines() if line.startswith("unreadable")]
    assert f"{folder / 'attempt.3.json'}: " in line
    lease = Lease.acquire(folder, holder=Holder.here(), lease_s=0.1)
    assert lease.attempt.number == 4
    assert attempts(folder)[2].end == "lost"


@pytest.mark.parametrize("wreck", WRECKED)
def test_a_wrecked_end_of_an_attempt_is_an_end(wreck: Callable[[Path], None], tmp_path: Path) -> None:
    root = results_folder(tmp_path)
    folder = state_folder(root, open_key(root))
    wreck(folder / "attempt.2.end.json")
    assert shown(root)[0] == 0
    assert attempts(folder)[1].end in ("lost", "interrupted")
    assert Lease.acquire(folder, holder=Holder.here(), lease_s=0.1).attempt.number == 3


@pytest.mark.parametrize("name", ["sweep.json", "chunk.000.json", "chunk.000.job.json", "chunk.000.closed.json"])
@pytest.mark.parametrize("wreck", [_pipe, _folder, _sparse, _written(""), _written("[" * 200_000), _written("[]")])
def test_a_wrecked_sweep_is_left_out_by_name(wreck: Callable[[Path], None], name: str, tmp_path: Path) -> None:
    root = results_folder(tmp_path)
    wreck(root / "sweeps" / SWEEP / name)
    code, text = shown(root)
    assert code == 0
    (line,) = [line for line in text.splitlines() if line.startswith("unreadable")]
    assert str(root / "sweeps" / SWEEP / name.replace(".job", "").replace(".closed", "")) in line
    path = root / "sweeps" / SWEEP / "chunk.000.json"
    assert worker.main([str(path)]) == 3


@pytest.mark.parametrize(
    ("field", "value"),
    [("key", "../../../etc"), ("key", "0" * 15), ("key", None), ("limit", "1"), ("seed", 1e400)],
)
def test_what_a_chunk_names_is_checked(field: str, value: object, tmp_path: Path) -> None:
    root = results_folder(tmp_path)
    path = root / "sweeps" / SWEEP / "chunk.000.json"
    content = json.loads(path.read_text())
    content["runs"][0][field] = value
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=r"chunk.000.json cannot be read .* move the folder .* away"):
        read_chunk(path)


@pytest.mark.parametrize("job", ["--user=me", "7;rm", "7 8", "x"])
def test_an_answer_that_is_no_job_reaches_no_command(job: str, tmp_path: Path) -> None:
    root = results_folder(tmp_path)
    path = root / "sweeps" / SWEEP / "chunk.000.json"
    path.with_name("chunk.000.job.json").write_text(json.dumps({"job": job}))
    with pytest.raises(UsageError, match="names no job of a cluster"):
        read_chunk(path)


@pytest.mark.parametrize("change", ["results", "seed", "plugins", "brackets"])
def test_a_worker_runs_only_the_jobs_of_its_chunk(change: str, tmp_path: Path, capsys: Any) -> None:
    root = results_folder(tmp_path / "runs")
    path = root / "sweeps" / SWEEP / "chunk.000.jobs.jsonl"
    jobs = [json.loads(line) for line in path.read_text().splitlines()]
    if change == "results":
        jobs[1]["results"] = str(tmp_path / "elsewhere")
    elif change == "seed":
        jobs[1]["run"]["seed"] = 5
    elif change == "plugins":
        (tmp_path / "plugin.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
        jobs[1]["plugins"] = [str(tmp_path / "plugin.py")]
    path.write_text("[" * 100_000 if change == "brackets" else "".join(json.dumps(job) + "\n" for job in jobs))
    before = sorted(tmp_path.rglob("*"))
    assert worker.main([str(path.with_name("chunk.000.json"))]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert sorted(tmp_path.rglob("*")) == before


# Anything at all in any of these files.

TEXT = "".join(map(chr, range(128))) + "\x9b\u202eé😀"
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(TEXT, max_size=8)
    | st.sampled_from(["\x1b[2J", "../x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(TEXT, max_size=4), inner, max_size=3),
    max_leaves=6,
)
Mutation = Callable[[bytes], bytes]


@st.composite
def mutations(draw: st.DrawFn) -> Mutation:
    """Other bytes, half of them, or a field that is missing, new, or holds something else."""
    kind = draw(st.sampled_from(["bytes", "cut", "flip", "value", "missing", "new"]))
    if kind == "bytes":
        content = draw(st.binary(max_size=64))
        return lambda _: content
    position, value, name = draw(st.integers(0, 2000)), draw(JSON), draw(st.text(TEXT, max_size=6))
    if kind == "cut":
        return lambda data: data[: position % (len(data) + 1)]
    if kind == "flip":
        return lambda data: bytes(
            b ^ (1 << position % 8) if i == position % len(data) else b for i, b in enumerate(data)
        )

    def change(data: bytes) -> bytes:
        lines = data.decode().splitlines()
        content = json.loads(lines[0]) if len(lines) > 1 and lines[1].startswith("{") else json.loads(data)
        places = list(_places(content))
        holder, key = places[position % len(places)]
        if kind == "value":
            holder[key] = value
        elif kind == "missing":
            del holder[key]
        elif isinstance(holder, dict):
            holder[name] = value
        return json.dumps(content).encode()

    return change


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    for key, value in list(content.items() if isinstance(content, dict) else enumerate(content)):
        yield content, key
        if isinstance(value, dict | list) and value:
            yield from _places(value)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return results_folder(tmp_path_factory.mktemp("state") / "runs")


@pytest.fixture(scope="module")
def priced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the demo card, whose attempts tell what the next seed will take."""
    root = tmp_path_factory.mktemp("state") / "runs"
    job = job_of(root)
    cost = {"wall_time_s": 60.0}
    counts = {"train": 28, "val": 4, "test": 4}
    RecordStore(root).write(Record(run=job.run, key=job.run.key, code="OK", cost=cost, counts=counts))
    Lease.acquire(state_folder(root, job.run.key), holder=replace(Holder.here(), ticks=1)).release("finished")
    return root


@settings(max_examples=20, deadline=None, derandomize=True)
@given(name=st.sampled_from(["attempt.1.json", "attempt.1.end.json"]), mutate=mutations())
@example(name="attempt.1.json", mutate=lambda data: data.replace(b'"started": ', b'"started": -9e11, "x": '))
def test_whatever_stands_in_an_attempt_a_plan_is_priced(priced: Path, name: str, mutate: Mutation) -> None:
    (path,) = priced.glob(f"state/*/{name}")
    backup = path.read_bytes()
    grid = ["--methods", "lora", "--datasets", "kvasir", "--protocol", "demo", "--seeds", "2", "--results", str(priced)]
    out = io.StringIO()
    try:
        path.write_bytes(mutate(backup))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = run.main([*grid, "--plan", "--debug"])
    finally:
        path.write_bytes(backup)
    assert code == 0
    assert "2 runs, 1 finished" in out.getvalue()
    assert "1 record of the same shape" in out.getvalue()


FILES = 10


@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(which=st.integers(0, FILES - 1), mutate=mutations())
@example(which=0, mutate=lambda _: b"[" * 200_000)
def test_whatever_stands_in_a_file_a_verb_answers_in_lines(pristine: Path, which: int, mutate: Mutation) -> None:
    root = pristine
    files = sorted(path for path in root.rglob("*.json*") if path.parent.name != "records")
    assert len(files) == FILES
    path = files[which]
    backup = path.read_bytes()
    outside = sorted(root.parent.rglob("*"))
    try:
        path.write_bytes(mutate(backup))
        for words in VERBS:
            code, text = shown(root, *words)
            assert code in (0, 1, 2)
            assert code == 0 or text.count("\n") == 1
            assert not any(character < " " and character != "\n" for character in text)
        assert worker.main([str(root / "sweeps" / SWEEP / "chunk.000.json"), "--after", "0"]) in (0, 3)
        assert sorted(root.parent.rglob("*")) == outside
        folder = root.parent / "copy"
        shutil.copytree(state_folder(root, open_key(root)), folder)
        try:
            with contextlib.suppress(Held, Exhausted):
                Lease.acquire(folder, holder=Holder.here(), limit=9, lease_s=0.01)
        finally:
            shutil.rmtree(folder)
    finally:
        path.write_bytes(backup)
