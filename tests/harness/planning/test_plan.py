"""Planning resolves everything before anything starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.archive.schema import Record, Run
from harness.archive.store import RecordStore
from harness.datasets.base import DatasetError
from harness.datasets.samples import write_samples
from harness.dispatch.target import target_of
from harness.experiment.building import open_data
from harness.methods.parts.placement import MethodError
from harness.models.known import IMAGENET
from harness.planning.data import ImageCounts, limited, network_images, write_sample
from harness.planning.plan import Plan
from harness.planning.request import Job, PlannedRow, Request
from harness.planning.understand import parse_row, with_options
from harness.pricing import parameter_rows, plan_text, price
from harness.protocols.compare import from_protocol
from harness.protocols.load import as_rules, load_protocol, resolve
from harness.system.errors import UsageError
from tests.harness.planned import found_and_planned, plan_of
from tests.harness.report.sample import record
from tests.values import there


def planned(samples: Path, tmp_path: Path, **changes: Any) -> Plan:
    return plan_of(tmp_path, "lora", "nas-lora", samples=samples, **{"benchmarks": ("kvasir", "leaf"), **changes})


LORA = (PlannedRow(method="lora"),)


def test_grid_is_methods_by_benchmarks_by_seeds_and_one_run_under_two_words_is_planned_once(samples, tmp_path) -> None:
    jobs = planned(samples, tmp_path, seeds=(0, 1)).jobs
    assert len(jobs) == 2 * 2 * 2
    assert len({job.run.key for job in jobs}) == len(jobs)
    assert {job.run.method for job in jobs} == {"lora", "naslora"}
    rows = (*LORA, *LORA, PlannedRow(method="lora", options={"rank": 3}))
    assert [job.run.label for job in planned(samples, tmp_path, rows=rows).jobs] == ["lora", "lora"]


def test_a_run_says_where_its_row_was_planned_and_not_where_it_was_left_out(samples: Path, tmp_path: Path) -> None:
    rows = (*LORA, PlannedRow(method="zeroshot"))
    made = planned(samples, tmp_path, rows=rows, benchmarks=("kvasir", "trans10k_v1"), leave_out_unfit=True)
    on = {job.run.method: job.run.planned_benchmarks for job in made.jobs}
    assert on == {"lora": ["kvasir", "trans10k_v1"], "zeroshot": ["kvasir"]}


def test_what_is_not_on_disk_may_be_left_out_with_a_line_and_what_is_damaged_may_not(tmp_path: Path) -> None:
    data = write_sample("kvasir", tmp_path)
    there: dict[str, Any] = {"data_root": data, "overrides": {"data": "files"}, "checkpoints": {"": Path("none")}}
    made = planned(tmp_path, tmp_path, **there, skip_missing=True)
    assert {job.run.benchmark for job in made.jobs} == {"kvasir"}
    assert {tuple(job.run.planned_benchmarks) for job in made.jobs} == {("kvasir",)}
    assert "leaf is left out: " in "".join(made.problems)
    next(data.glob("*/masks/*")).unlink()
    with pytest.raises(DatasetError, match="mask"):
        planned(tmp_path, tmp_path, **there, skip_missing=True)


def test_a_run_holds_what_tables_say_of_its_method(samples: Path, tmp_path: Path) -> None:
    search = {"search_start_epoch": 2, "operations": "skip_connect,dil_conv_3x3"}
    rows = PlannedRow(method="convlora", options={"gate": "switch"}), PlannedRow(method="naslora", options=search)
    of = {job.run.method: job.run for job in planned(samples, tmp_path, rows=rows, overrides={"epochs": 2}).jobs}
    plain = of["convlora"]
    assert (plain.label_note, plain.never_reached, plain.operations) == ("Switch gate", "", [])
    assert of["naslora"].operations == ["skip_connect", "dil_conv_3x3"]
    assert "T_B = 2 of 2 epochs" in str(of["naslora"].never_reached)


def test_key_depends_on_content_and_not_on_results_folder_or_label(samples: Path, tmp_path: Path) -> None:
    def key(results: Path = tmp_path, **changes: Any) -> str:
        return planned(samples, results, **{"benchmarks": ("kvasir",), "rows": LORA, **changes}).jobs[0].run.key

    plain = key()
    assert key(rows=(PlannedRow(method="lora", label="mine"),)) == plain
    assert key(tmp_path / "elsewhere") == plain
    assert key(overrides={"checkpoint_minutes": "3"}) == plain
    assert key(overrides={"lr": "1e-3"}) != plain
    assert key(rows=(PlannedRow(method="lora", options={"rank": 4}),)) != plain
    assert key(rows=with_options(LORA, {"lora": {"rank": "4"}})) == key(
        rows=(PlannedRow(method="lora", options={"rank": 4}),)
    )


def test_the_normalisation_is_the_backbones_unless_it_is_named(samples: Path, tmp_path: Path) -> None:
    backbones = ("tiny", "timm/vit_tiny_patch16_224")
    shared = {"rows": LORA, "benchmarks": ("kvasir",), "backbones": backbones}

    def runs(**overrides: list[str]) -> list[Run]:
        plan = planned(samples, tmp_path, **shared, overrides={"image_size": "224", **overrides})
        return [job.run for job in plan.jobs]

    imagenet, half = [list(values) for values in IMAGENET], [[0.5] * 3, [0.5] * 3]
    own, named = runs(), runs(pixel_mean=["0.485", "0.456", "0.406"], pixel_std=["0.229", "0.224", "0.225"])
    assert [[run.rules["pixel_mean"], run.rules["pixel_std"]] for run in own] == [imagenet, half]
    assert [[run.rules["pixel_mean"], run.rules["pixel_std"]] for run in named] == [imagenet, imagenet]
    # Where both are ImageNet's it is the same run as ever, under the same rules; elsewhere another one under others.
    assert [a.key == b.key for a, b in zip(own, named, strict=True)] == [True, False]
    assert [a.protocol_hash == b.protocol_hash for a, b in zip(own, named, strict=True)] == [True, False]
    protocol = as_rules(resolve(load_protocol("demo", {"image_size": "224"}), "kvasir"))
    assert [from_protocol(run.rules, protocol) for run in own] == [{}, {}]
    assert from_protocol(runs(pixel_mean=["0.5"] * 3)[0].rules, protocol).keys() == {"pixel_mean"}


def test_finished_runs_drop_out_and_failed_ones_do_not(samples: Path, tmp_path: Path) -> None:
    first, second, *_ = planned(samples, tmp_path).jobs
    store = RecordStore(tmp_path)
    store.write(Record(run=first.run, key=first.run.key, code="OK"))
    store.write(Record(run=second.run, key=second.run.key, code="OOM"))
    repeated = planned(samples, tmp_path)
    assert repeated.finished == {first.run.key}
    assert dict(repeated.failed) == {second.run.key: "OOM"}
    assert second in repeated.pending


@pytest.mark.parametrize(
    ("row", "overrides", "said"),
    [
        ("lora[blocks=9]", {}, "blocks are 0-3"),
        ("decoder[blocks=3]", {}, "unknown key .blocks."),
        ("decoder[rnk=3]", {}, "unknown key .rnk."),
        ("lora", {"benchmarks.kvasirr.epochs": "2"}, "did you mean"),
        ("lora", {"methods.loraa.rank": "2"}, "did you mean"),
        ("lora[sites=decoder]", {"decoder_lr": "1e-4"}, "its decoder is frozen"),
        ("lora", {"decoder": "linear"}, "needs a plain ViT of timm, not tiny"),
        ("lora", {"task": "classification", "decoder": "mean-pool"}, "(leaf|kvasir) has masks"),
        ("lora", {"backbone": "tiny_timm", "decoder": "mean-pool"}, "decoder=mean-pool learns labels"),
        ("lora", {"select_by": "accuracy"}, "is not one of its metrics"),
        ("lora", {"backbone": "tiny_timm", "decoder": "linear", "prompt": "box"}, "but not decoder=linear"),
        ("lora", {"benchmarks": ("trans10k_v2",), "prompt": "box"}, "trans10k_v2 has several classes"),
        ("lora[sites=decoder]", {"backbone": "tiny_timm", "decoder": "linear"}, "only SAM's mask decoder"),
    ],
)
def test_what_cannot_be_is_found_while_planning(row: str, overrides: Any, said: str, samples: Path, tmp_path: Path):
    with pytest.raises((MethodError, UsageError), match=said):
        planned(samples, tmp_path, rows=(parse_row(row),), **overrides)


def test_rows_that_do_not_fit_a_backbone_are_named_and_left_out_unless_someone_asked_for_them(
    samples, tmp_path
) -> None:
    rows = (*LORA, PlannedRow(method="convpass"), PlannedRow(method="samadapter"))
    grid: dict[str, Any] = {"backbones": ("tiny_sam2", "tiny"), "checkpoints": {"": "none"}, "benchmarks": ("kvasir",)}
    made = planned(samples, tmp_path, rows=rows, leave_out_unfit=True, **grid)
    there = {(job.run.method, job.run.backbone) for job in made.jobs}
    assert there == {("lora", "tiny_sam2"), *((row.method, "tiny") for row in rows)}
    assert [line.partition(":")[0] for line in made.problems] == [
        "convpass is left out on tiny_sam2", "samadapter is left out on tiny_sam2"
    ]  # fmt: skip
    with pytest.raises(MethodError, match="convpass"):
        planned(samples, tmp_path, rows=rows, **grid)
    with pytest.raises(MethodError, match="convpass"):
        planned(samples, tmp_path, rows=rows[1:2], leave_out_unfit=True, **{**grid, "backbones": ("tiny_sam2",)})


def test_a_cache_is_where_its_variables_say_or_in_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(run=record().run, dataset_root="", checkpoint="", results="runs", cache="$SCRATCH/cache")
    monkeypatch.setenv("SCRATCH", "/scratch")
    assert job.cache_folder == Path("/scratch/cache")
    monkeypatch.delenv("SCRATCH")
    assert job.cache_folder == replace(job, cache="").cache_folder == Path("runs/cache")


def test_a_folder_that_cannot_hold_samples_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="choose another --results"):
        write_sample("kvasir", tmp_path / "file")


@pytest.mark.parametrize(("name", "said"), [("nowhere.pth", "does not exist"), (".", "is a folder")])
def test_a_missing_checkpoint_does_not_start_from_random_weights(name, said, samples, tmp_path) -> None:
    made = planned(samples, tmp_path, checkpoints={"": tmp_path / name})
    assert said in made.missing[0]
    assert made.jobs[0].run.key != planned(samples, tmp_path).jobs[0].run.key


def test_whole_paper_grid_plans_with_exact_counts_and_no_data(tmp_path: Path) -> None:
    rows = tuple(PlannedRow(method=name) for name in ("lora", "convlora", "decoder"))
    where: dict[str, Any] = {"protocol": load_protocol("nas-lora"), "backbones": ("vit_h",), "results": tmp_path}
    made = found_and_planned(Request(rows=rows, benchmarks=("kvasir",), **where))
    counted = {name: (encoder, trainable) for name, _, encoder, trainable, _ in parameter_rows(made)}
    assert counted == {"lora": (491_520, 3_997_056), "convlora": (514_560, 4_020_096), "decoder": (0, 3_505_536)}
    assert "3,997,056" in plan_text(made, price(made, tmp_path, target=target_of()), target=target_of())


def test_a_budget_of_updates_makes_another_run_only_of_a_method_whose_weights_lose_updates(samples, tmp_path) -> None:
    def keys(**overrides: object) -> list[str]:
        return [job.run.key for job in planned(samples, tmp_path, benchmarks=("kvasir",), overrides=overrides).jobs]

    turns = {"naslora.alternate": "iteration"}
    epochs, updates = keys(**turns), keys(budget="updates", **turns)
    assert epochs[0] == updates[0]
    assert epochs[1] != updates[1]
    assert keys() == keys(budget="updates")


def test_a_run_says_what_its_sweep_planned_and_its_key_does_not(samples: Path, tmp_path: Path) -> None:
    alone, three = (planned(samples, tmp_path, seeds=seeds).jobs[0].run for seeds in ((0,), (0, 1, 2)))
    assert (alone.planned_seeds, three.planned_seeds) == ([0], [0, 1, 2])
    assert alone.planned_benchmarks == three.planned_benchmarks
    assert alone.benchmark in alone.planned_benchmarks
    assert alone.key == three.key


def test_every_decoder_has_its_runs_and_sams_keep_their_keys(samples: Path, tmp_path: Path) -> None:
    where = {"backbones": ("tiny_timm",), "benchmarks": ("kvasir",), "rows": LORA}
    (plain,) = planned(samples, tmp_path, **where).jobs
    made = planned(samples, tmp_path, decoders=("sam", "linear", "mask-transformer"), **where)
    assert [job.run.rules["decoder"] for job in made.jobs] == ["sam", "linear", "mask-transformer"]
    assert made.jobs[0].run.key == plain.run.key
    assert len({job.run.key for job in made.jobs}) == len({job.run.protocol_hash for job in made.jobs}) == 3
    models = {model: trained for _, model, _, trained, _ in parameter_rows(made)}
    assert models.keys() == {"tiny_timm", "tiny_timm + linear", "tiny_timm + mask-transformer"}
    assert models["tiny_timm + mask-transformer"] - models["tiny_timm + linear"] == 112_580 - 130
    assert "tiny_timm + linear" in plan_text(made, price(made, tmp_path, target=target_of()), target=target_of())
    (linear,) = planned(samples, tmp_path, overrides={"decoder": "linear"}, **where).jobs
    assert linear.run.key == made.jobs[1].run.key


def test_the_seeds_of_a_row_are_folds_where_the_split_follows_them(samples: Path, tmp_path: Path) -> None:
    """Each carves its own test images from the same pairs, whose manifest they share. A worker finds the same ones."""
    rules = {"split_rule": "carved", "split_follows_seed": True, "test_limit": 0}
    jobs = planned(samples, tmp_path, seeds=(0, 1), benchmarks=("leaf",), overrides=rules).jobs
    assert [job.run.rules["split_seed"] for job in jobs] == [0, 1, 0, 1]
    assert len({job.run.manifest for job in jobs}) == 1
    assert "the run's seed" in jobs[0].run.split_rule
    first, second, repeated, _ = (open_data(job.run, Path(job.dataset_root)) for job in jobs)
    stems = [{pair.stem for pair in data.tests["test"].pairs} for data in (first, second, repeated)]
    assert stems[0] != stems[1]
    assert stems[0] == stems[2]
    assert stems[0].isdisjoint(pair.stem for pair in first.train.pairs)
    plain = planned(samples, tmp_path, seeds=(0,), benchmarks=("leaf",), overrides={"split_rule": "carved"}).jobs
    assert {job.run.key for job in plain}.isdisjoint(job.run.key for job in jobs)
    altered = replace(jobs[0].run, manifest=plain[0].run.manifest)
    with pytest.raises(DatasetError):
        open_data(altered, Path(jobs[0].dataset_root))


def test_every_seed_and_method_trains_on_the_same_part_of_the_images(samples: Path, tmp_path: Path) -> None:
    few = {"train_limit": 5, "val_limit": 2, "test_limit": 2}
    jobs = planned(samples, tmp_path, seeds=(0, 1), benchmarks=("kvasir",), overrides=few).jobs
    seen = [open_data(job.run, Path(job.dataset_root)) for job in jobs]
    parts = [
        tuple(tuple(pair.stem for pair in part.pairs) for part in (splits.train, splits.val, splits.tests["test"]))
        for splits in seen
    ]
    assert len(parts) == 4
    assert [*map(len, parts[0])] == [5, 2, 2]
    assert len(set(parts)) == 1


@pytest.mark.parametrize("part", ["image", "mask"])
def test_a_file_that_changed_since_the_plan_is_refused(part: str, tmp_path: Path) -> None:
    (job,) = planned(tmp_path / "samples", tmp_path, rows=(PlannedRow(method="lora"),), benchmarks=("kvasir",)).jobs
    pair = open_data(job.run, Path(job.dataset_root)).train.pairs[0]
    path: Path = getattr(pair, part)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(DatasetError):
        open_data(job.run, Path(job.dataset_root))


def test_images_of_a_finished_run_come_from_its_samples_or_from_the_folder_of_the_settings(
    samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = planned(samples, tmp_path, benchmarks=("kvasir",)).jobs[0]
    pair = open_data(job.run, Path(job.dataset_root)).tests["test"].pairs[0]
    generated = replace(record(), run=job.run)
    files = replace(generated, run=replace(job.run, origin="files"))
    of_image, side = ("test", pair.stem), job.run.rules["image_size"]
    assert there(network_images(samples)(generated, *of_image)).shape == (side, side, 3)
    assert network_images(tmp_path)(generated, *of_image) is None
    assert network_images(samples)(files, *of_image) is None
    of_sweep = {job.run.key: samples / "sample-data" / "kvasir"}
    assert network_images(tmp_path, known=of_sweep.get)(files, *of_image) is not None
    assert network_images(tmp_path, known={"another": tmp_path}.get)(files, *of_image) is None
    settings = tmp_path / "settings.toml"
    settings.write_text(f'data = "/nowhere"\n[datasets]\nkvasir = "{samples / "sample-data" / "kvasir"}"\n')
    monkeypatch.setenv("SAM_PEFT_SETTINGS", str(settings))
    assert network_images(tmp_path)(files, *of_image) is not None


def test_of_several_folders_of_images_the_one_with_the_splits_of_the_run_is_taken(
    samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAM_PEFT_SETTINGS", "none")
    job = planned(samples, tmp_path, benchmarks=("kvasir",)).jobs[0]
    pair = open_data(job.run, Path(job.dataset_root)).tests["test"].pairs[0]
    files = replace(record(), run=replace(job.run, origin="files"))
    write_samples("kvasir", tmp_path / "other", images=31, size=32)
    (tmp_path / "empty").mkdir()
    right = samples / "sample-data" / "kvasir"
    others = [tmp_path / "empty", tmp_path / "other"]
    assert network_images(tmp_path, data=[*others, right])(files, "test", pair.stem) is not None
    with pytest.raises(DatasetError, match="other"):
        network_images(tmp_path, data=others)(files, "test", pair.stem)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({}, (10, 8, 6)),
        ({"train_limit": 4, "val_limit": 3, "test_limit": 2}, (4, 3, 2)),
        ({"train_limit": 4, "val_limit": 99, "test_untrained": True}, (4, 8, 12)),
    ],
)
def test_limits_count_as_a_run_takes_them(rules: dict[str, Any], expected: tuple[int, int, int]) -> None:
    assert limited(ImageCounts(train=10, val=8, test=6), rules) == expected
