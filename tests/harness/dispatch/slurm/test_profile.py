"""Cluster profiles: validated before anything is submitted, with the nearest name."""

from __future__ import annotations

import os

import pytest

from harness.dispatch.slurm.profile import PROFILES, load_profile, minutes, profile_names
from harness.system.errors import UsageError


@pytest.mark.parametrize("name", profile_names())
def test_shipped_profiles_are_valid(name):
    assert load_profile(name).name == name


def test_a_backbone_has_its_own_shape_and_the_command_line_overrides_both():
    gpu = load_profile("gpu")
    assert gpu.shape("vit_h").time == "12:00:00"
    assert gpu.shape("vit_h").constraint == "a100|h100"
    assert gpu.shape("tiny").time == "8:00:00"
    assert load_profile("gpu", {"time": "2h"}).shape("vit_h").time == "2h"
    assert load_profile("gpu", {"cpus": "4"}).shape("vit_b").cpus == 4


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"partitoin": "x"}, "did you mean 'partition'"),
        ({"cpus": "many"}, "cpus='many' must be a valid integer"),
        ({"time": "soon"}, "time='soon' is not a time limit, such as 90"),
        ({"mem": "3 GB"}, "mem='3 GB'"),
        ({"parallelism": "0"}, "parallelism must be at least 1"),
        ({"lease_seconds": "0"}, "lease_seconds=0 must be at least 1"),
        ({"lease_seconds": "nan"}, "lease_seconds=nan must be at least 1"),
        ({"patience_seconds": "inf"}, "patience_seconds=inf must not be negative or endless"),
    ],
)
def test_wrong_values_are_one_line(overrides, said):
    with pytest.raises(UsageError) as caught:
        load_profile("gpu", overrides)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_profile_gets_the_nearest_name():
    with pytest.raises(UsageError, match="did you mean 'gpu'"):
        load_profile("gup")
    with pytest.raises(UsageError, match=r"/nowhere/x\.yaml does not exist"):
        load_profile("/nowhere/x.yaml")


def test_a_name_never_leaves_the_folder_of_profiles(tmp_path):
    (tmp_path / "evil.yaml").write_text("setup: [echo pwned]\n")
    for name in (str(tmp_path / "evil"), os.path.relpath(tmp_path / "evil", PROFILES)):
        with pytest.raises(UsageError):
            load_profile(name)


def test_a_users_own_file_is_read_and_an_error_in_a_shape_names_the_place(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("partition: long\ntime: 4:00:00\nshapes:\n  vit_b: {memory: 3G}\n")
    with pytest.raises(UsageError, match=r"shapes\.vit_b: unknown key 'memory' \(did you mean 'mem'\?\)"):
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


def test_gres_says_how_many_gpus_a_run_has(tmp_path):
    for gres, gpus in {"": 0, "gpu": 1, "gpu:2": 2, "gpu:a100:4": 4, "license:1": 0, "ssd:1,gpu:3": 3}.items():
        assert load_profile("testcluster", {"gres": gres}).shape("tiny").gpus == gpus


@pytest.mark.parametrize(
    ("extra", "gpus"),
    [({}, 0), ({"gpus": "2"}, 2), ({"gpus-per-node": "a100:4"}, 4), ({"gpus-per-task": "1"}, 3), ({"gpus": "a100"}, 1)],
)
def test_gpus_may_be_asked_for_by_a_further_option(extra: dict[str, str], gpus: int) -> None:
    profile = load_profile("testcluster", {"extra": extra, "gres": "", "gpus_per_run": 3})
    assert profile.gpus_of(profile.shape("tiny")) == gpus
    asked_twice = load_profile("testcluster", {"extra": extra, "gres": "gpu:7"})
    assert asked_twice.gpus_of(asked_twice.shape("tiny")) == 7


def test_shapes_are_of_backbones_and_a_run_is_warned_after_it_began(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("time: 4:00:00\nshapes: {vit-h: {mem: 64G, time: 12:00:00}}\n")
    assert load_profile(str(path)).shape("vit_h").mem == "64G"
    for shapes, said in {
        "vith: {mem: 1G}": r"mine: shapes: unknown backbone 'vith' \(did you mean 'vit_h'\?\)",
        "vit-h: {mem: 1G}, vit_h: {mem: 2G}": "vit_h is there twice",
        "vit_b: {time: 2}": "signal_seconds 120 is not below the time limit 2",
    }.items():
        path.write_text(f"time: 4:00:00\nshapes: {{{shapes}}}\n")
        with pytest.raises(UsageError, match=said):
            load_profile(str(path))
    path.write_text("time: 2\n")
    with pytest.raises(UsageError, match="lower it or raise the limit"):
        load_profile(str(path))
