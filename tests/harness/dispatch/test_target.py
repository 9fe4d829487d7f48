"""Where the options of a command line send runs, and cluster profiles: validated before anything is submitted."""

from __future__ import annotations

import os

import pytest

from harness.dispatch.target import PROFILES, Target, load_profile, minutes, profile_names, target_of
from harness.system.errors import UsageError
from harness.system.machine import gpu_name, visible_gpus

TWO = "printf 'GPU 0: NVIDIA A (UUID: GPU-1)\\n  MIG 1g.5gb Device 0: (UUID: MIG-2)\\nGPU 1: NVIDIA B (UUID: GPU-3)\\n'"


@pytest.fixture(autouse=True)
def _machine(monkeypatch, tmp_path, client):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))  # whatever driver is installed here
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("harness.dispatch.target.cores", lambda: 12)


def test_a_worker_has_a_gpu_or_its_share_of_at_most_four_workers_cores(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert target_of("inline") == Target(executor="inline", workers=1, threads=12)
    assert target_of() == target_of("local") == Target(executor="local", workers=4, threads=3)
    assert target_of(workers=5) == Target(executor="local", workers=5, threads=2)
    assert target_of(workers=20) == Target(executor="local", workers=20, threads=1)
    monkeypatch.setattr("harness.dispatch.target.cores", lambda: 2)
    assert target_of() == Target(executor="local", workers=2, threads=1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-8932f937,5")
    devices = ("3", "GPU-8932f937", "5")
    assert target_of("inline") == Target(executor="inline", devices=devices, workers=1, threads=2)
    assert target_of() == Target(executor="local", devices=devices, workers=3, threads=1)


def test_without_the_variable_the_driver_lists_gpus(client):
    assert visible_gpus() == []
    assert gpu_name("0") == ""
    client("nvidia-smi", TWO)
    assert visible_gpus() == ["0", "1"]
    assert target_of("local").devices == ("0", "1")
    client("nvidia-smi", f"{TWO}; exit 9")  # a driver that does not fit the kernel
    assert visible_gpus() == []


def test_the_model_of_a_gpu_is_queried_by_its_number(client):
    client("nvidia-smi", 'test "$1" = --query-gpu=name && test "$2" = --format=csv,noheader && echo "NVIDIA ${3:-any}"')
    assert gpu_name("1") == "NVIDIA --id=1"
    assert gpu_name("GPU-8932f937") == "NVIDIA --id=GPU-8932f937"
    client("nvidia-smi", "echo NVIDIA; exit 9")
    assert gpu_name("0") == ""
    client("nvidia-smi", "true")
    assert gpu_name("0") == ""


@pytest.mark.parametrize("name", profile_names())
def test_shipped_profiles_are_valid(name):
    assert load_profile(name).name == name


def test_a_backbone_has_its_own_shape_and_the_command_line_overrides_both():
    gpu = load_profile("gpu")
    assert gpu.shape("vit_h").time == "12:00:00"
    assert gpu.shape("vit_h").mem == "64G"
    assert gpu.shape("tiny").time == "8:00:00"
    shown = [load_profile("gpu", {"time": time}).shape("tiny").in_words for time in ("90", "2h")]
    assert [words.rpartition(", ")[2] for words in shown] == ["90 min", "2h"]
    assert load_profile("gpu", {"time": "2h"}).shape("vit_h").time == "2h"
    assert load_profile("gpu", {"cpus": "4"}).shape("vit_b").cpus == 4
    assert load_profile("gpu", {"runs_per_job": "4", "gpus_per_run": "1"}).shape("tiny").runs_per_job == 4


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"partitoin": "x"}, "did you mean 'partition'"),
        ({"cpus": "many"}, "cpus='many' must be a valid integer"),
        ({"time": "soon"}, "time='soon' is not a time limit, such as 90"),
        ({"mem": "3 GB"}, "mem='3 GB'"),
        ({"time": "0"}, "more than zero"),
        ({"cpus": "0"}, "cpus must be at least 1"),
        ({"parallelism": "0"}, "parallelism must be at least 1"),
        ({"lease_seconds": "0"}, "lease_seconds"),
        ({"lease_seconds": "nan"}, "lease_seconds"),
        ({"patience_seconds": "inf"}, "patience_seconds"),
        ({"gpus_per_run": "2"}, "a run trains on one GPU"),
    ],
)
def test_wrong_values_are_one_line(overrides, said):
    with pytest.raises(UsageError) as caught:
        load_profile("gpu", overrides)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_profile_gets_the_nearest_name_and_no_name_leaves_their_folder(tmp_path):
    (tmp_path / "evil.yaml").write_text("setup: [echo pwned]\n")
    outside = dict.fromkeys((str(tmp_path / "evil"), os.path.relpath(tmp_path / "evil", PROFILES)), "does not exist")
    for name, said in {"gup": "did you mean 'gpu'", "/nowhere/x.yaml": "does not exist", **outside}.items():
        with pytest.raises(UsageError, match=said):
            load_profile(name)


def test_a_users_own_file_is_read_and_an_error_in_a_shape_names_its_key(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("partition: long\ntime: 4:00:00\nshapes:\n  vit_b: {memory: 3G}\n")
    with pytest.raises(UsageError, match=r"shapes\.vit_b: unknown key 'memory' \(did you mean 'mem'\?\)"):
        load_profile(str(path))
    path.write_text("[long]")
    with pytest.raises(UsageError, match="not a mapping"):
        load_profile(str(path))
    path.write_text("partition: [")
    with pytest.raises(UsageError, match=r"cluster profile .*mine\.yaml"):
        load_profile(str(path))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 90),
        ("90m", 90),
        ("2h", 120),
        ("1d", 1440),
        ("4:00:00", 240),
        ("1:30", 2),
        ("1-12", 2160),
        ("1-12:30", 2190),
        ("45s", 1),
    ],
)
def test_time_limits_are_read_as_slurm_reads_them(text, expected):
    assert minutes(text) == expected


@pytest.mark.parametrize(
    ("gres", "extra", "gpus"),
    [("", {}, 0), ("gpu:3", {}, 1), ("license:1", {}, 0), ("ssd:1,gpu:a100:1", {}, 1), ("", {"gpus-per-task": "1"}, 1)],
)
def test_a_run_has_one_gpu_where_the_profile_requests_any(gres, extra, gpus) -> None:
    profile = load_profile("testcluster", {"extra": extra, "gres": gres})
    assert profile.gpus_of(profile.shape("tiny")) == gpus


def test_shapes_are_of_backbones_and_a_run_is_warned_after_it_began(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("time: 4:00:00\nshapes: {vit-h: {mem: 64G, time: 12:00:00}}\n")
    assert load_profile(str(path)).shape("vit_h").mem == "64G"
    for shapes, said in {
        "vith: {mem: 1G}": r"mine: shapes: unknown backbone 'vith' \(did you mean 'vit_h'\?\)",
        "vit_b: {time: 2}": "signal_seconds 120 is not below the time limit 2",
    }.items():
        path.write_text(f"time: 4:00:00\nshapes: {{{shapes}}}\n")
        with pytest.raises(UsageError, match=said):
            load_profile(str(path))
    path.write_text("time: 2\n")
    with pytest.raises(UsageError, match="lower it or raise the limit"):
        load_profile(str(path))
