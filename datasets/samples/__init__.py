"""Generated sample data sets in the layouts and encodings of the real archives, traps included. Deterministic, quick.

    path = harness.datasets.samples.write_samples("kvasir", Path("data"), seed=0)

What lies beside the pairs in the real archives and must not disturb is there too: junk, superpixels, copies, gaps.
Every sample carries a marker, so that no table can pass it off as the benchmark.
"""

from __future__ import annotations

import csv
import itertools
import os
import shutil
import socket
from hashlib import sha256
from pathlib import Path

import numpy as np
from PIL import Image

from harness.datasets.base import DatasetError
from harness.datasets.reading.folder_benchmark import SAMPLE_MARKER
from harness.datasets.samples.scenes import Palette, Scene, draw_scene, shape_of
from harness.datasets.samples.trees import RECIPES, Recipe, Stem, Tree, cvc_stem, kvasir_stem

Rows = dict[str, list[tuple[str, str]]]

_OTHERS = 4


def add_extras(name: str, folder: Path, *, layout: str, tree: Tree, seed: int, size: int, rows: Rows) -> None:
    """Add a layout's traps to a sample that is already written."""
    for images, _ in tree.parts.values():
        (folder / images / ".DS_Store").write_bytes(b"\x00\x00\x00\x01Bud1")
    generator = np.random.default_rng([seed, 99])
    if name == "isic2017" and layout == "original":
        _superpixels(folder, rows)
    if name == "sbu" and layout == "original":
        _images_without_masks(folder / tree.parts["train"][0], generator, size)
    if name == "leaf" and layout == "original":
        _augmented_copies(folder, rows["all"])
    if name == "road":
        _missing_imagery(folder, [image for part in rows.values() for image, _ in part][::5])
    if layout in ("pranet", "autogluon") and name in ("kvasir", "cvc612"):
        _foreign(folder, tree, generator, size, stem=cvc_stem if name == "kvasir" else kvasir_stem)
    if layout == "sinet":
        _foreign(folder, tree, generator, size, stem=lambda index, count: f"COD10K-CAM-1-Aquatic-{index + 1}")


def _superpixels(folder: Path, rows: Rows) -> None:
    for part in rows.values():
        for image, _ in part:
            path = folder / image
            with Image.open(path) as opened:
                opened.convert("RGB").resize(opened.size).save(path.with_name(f"{path.stem}_superpixels.png"))
        first = folder / part[0][0]
        first.with_name("README.md").write_text("licence and description\n", encoding="utf-8")


def _images_without_masks(images: Path, generator: np.random.Generator, size: int) -> None:
    for index in range(2):
        pixels = generator.integers(0, 255, size=(size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"without_mask_{index}.jpg")


def _augmented_copies(folder: Path, rows: list[tuple[str, str]]) -> None:
    for kind, position in (("images", 0), ("masks", 1)):
        target = folder / "aug_data" / "aug_data" / kind
        target.mkdir(parents=True, exist_ok=True)
        for row in rows[:6]:
            source = folder / row[position]
            with Image.open(source) as opened:
                opened.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(target / f"{source.stem}_flipped{source.suffix}")


def _missing_imagery(folder: Path, images: list[str]) -> None:
    for name in images:
        with Image.open(folder / name) as opened:
            pixels = np.array(opened)
        pixels[:, -pixels.shape[1] // 4 :] = 255
        Image.fromarray(pixels).save(folder / name)


def _foreign(folder: Path, tree: Tree, generator: np.random.Generator, size: int, *, stem: Stem) -> None:
    """Training images of the other benchmark that a bundle mixes in."""
    images, masks = tree.parts["train"]
    palette = Palette(background=(178, 92, 78), foreground=((228, 158, 70),))
    added = []
    for index in range(_OTHERS):
        scene = draw_scene(generator, (size, size), palette)
        image = f"{images}/{stem(index, _OTHERS)}{tree.image_suffix}"
        mask = f"{masks}/{stem(index, _OTHERS)}{tree.mask_names[0]}"
        Image.fromarray(scene.image).save(folder / image)
        tree.encode[0](folder / mask, scene.classes)
        added.append((image, mask))
    if "train" in tree.lists:
        with (folder / tree.lists["train"]).open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([100 + number, image, mask] for number, (image, mask) in enumerate(added))


UNIONS = {"origin": ("kvasir", "cvc612", "isic2017", "leaf", "road")}
"""Benchmarks made of the images of others, each of which is written."""
DEFAULT_IMAGES = 36
DEFAULT_SIZE = 112
GENERATOR = 1
"""Counts up with every change that changes the files."""


def layouts(name: str) -> tuple[str, ...]:
    """Layouts in which samples of a benchmark can be written. Raises DatasetError: unknown benchmark."""
    return ("original",) if name in UNIONS else tuple(_recipe(name).trees)


def write_samples(
    name: str,
    root: Path,
    *,
    layout: str = "original",
    images: int | None = None,
    seed: int = 0,
    size: int = DEFAULT_SIZE,
) -> Path:
    """Write a sample of benchmark ``name`` below ``root``; returns the benchmark's folder.

    Args:
        name: canonical name, such as ``kvasir``.
        root: data root; made if absent. A sample of the benchmark that is there is kept where it is the very same, and
            replaced where it is another, and nobody changed or added a file since.
        layout: one of `layouts`.
        images: how many images in all, at least 12; 36 by default.
        seed: seed of the scenes, not negative.
        size: side of the images in pixels; most benchmarks vary around it in size and aspect ratio.

    Raises:
        DatasetError: unknown benchmark or layout, too few images, a negative seed, or other data in the way, a file in or beside a sample
            included.
    """
    if name in UNIONS:
        for member in UNIONS[name]:
            write_samples(member, root, layout=layout, images=images, seed=seed, size=size)
        return root
    recipe = _recipe(name)
    if layout not in recipe.trees:
        raise DatasetError(f"{name} has no layout {layout!r} (choose from {', '.join(recipe.trees)})")
    count = DEFAULT_IMAGES if images is None else images
    if count < 12:
        raise DatasetError(f"a sample needs at least 12 images for its splits, not {count}")
    if size < 32:
        raise DatasetError(f"a sample needs images of at least 32 pixels, not {size}")
    if seed < 0:
        raise DatasetError(f"a sample needs a seed of 0 or more, not {seed}")
    tree = recipe.trees[layout]
    folder = root / tree.folder
    top = root / _top(tree)
    marker = f"generated: {name}, layout {layout}, {count} images of {size} px, seed {seed}, generator {GENERATOR}\n"
    if _is_there(folder, top, marker):
        return folder
    _require_unchanged(folder, top)
    staging = root / f".sampling-{name}-{socket.gethostname()}-{os.getpid()}"
    try:
        _write_tree(name, staging / tree.folder, layout=layout, tree=tree, count=count, seed=seed, size=size)
        written = "".join(f"{line}\n" for line in sorted(_contents(staging / _top(tree))))
        (staging / tree.folder / SAMPLE_MARKER).write_text(marker + written, encoding="utf-8")
        if top.exists():
            top.rename(staging / "before")
        (staging / _top(tree)).rename(top)
    except OSError:
        # Another process may have put the very same sample there meanwhile; then it serves as well.
        if not _is_there(folder, top, marker):
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def _top(tree: Tree) -> str:
    return tree.folder.split("/", maxsplit=1)[0]


def _is_there(folder: Path, top: Path, marker: str) -> bool:
    """Whether exactly this sample is there already. Raises DatasetError: something else is: real data, or the sample of another
    benchmark."""
    if not top.exists():
        return False
    path = folder / SAMPLE_MARKER
    if not path.is_file():
        raise DatasetError(f"{top} is there and no generated sample in this layout; choose another folder")
    first_line = path.read_text(encoding="utf-8").partition("\n")[0] + "\n"
    if first_line.split(",")[0] != marker.split(",")[0]:
        raise DatasetError(f"{top} holds another sample ({first_line.strip()}); choose another folder")
    return first_line == marker


def _contents(top: Path) -> set[str]:
    """``HASH  PATH`` of every file below, the marker left out."""
    files = [path for path in top.rglob("*") if not path.is_dir() and path.name != SAMPLE_MARKER]
    digests = [sha256(path.read_bytes()).hexdigest() if path.is_file() else "-" for path in files]
    return {f"{digest}  {path.relative_to(top)!s}" for digest, path in zip(digests, files, strict=True)}


def _require_unchanged(folder: Path, top: Path) -> None:
    """Raises DatasetError where a sample that is to be replaced holds a file that it was not written with."""
    if not top.exists():
        return
    written = set((folder / SAMPLE_MARKER).read_text(encoding="utf-8").splitlines()[1:])
    if foreign := sorted(line.partition("  ")[2] for line in _contents(top) - written):
        raise DatasetError(
            f"{top} holds another sample, and {len(foreign)} files are not as it was written, such as {foreign[0]!a}; "
            "move them away, or choose another folder"
        )


def _write_tree(name: str, folder: Path, *, layout: str, tree: Tree, count: int, seed: int, size: int) -> None:
    for directory in itertools.chain.from_iterable(tree.parts.values()):
        (folder / directory).mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[tuple[str, str]]] = {part: [] for part in tree.parts}
    for index, part in enumerate(_deal(tuple(tree.parts), count)):
        content = scene(name, index, seed=seed, size=size)
        rows[part].append(_write_pair(folder, tree, part, index, content=content, stem=stem(name, index, images=count)))
    for part, file_name in tree.lists.items():
        _write_list(folder / file_name, rows[part], indexed=part == "train")
    add_extras(name, folder, layout=layout, tree=tree, seed=seed, size=size, rows=rows)


def scene(name: str, index: int, *, seed: int = 0, size: int = DEFAULT_SIZE) -> Scene:
    """The ``index``-th scene of a sample before it is encoded: what a reader must get back."""
    recipe = _recipe(name)
    generator = np.random.default_rng([seed, *name.encode(), index])
    return draw_scene(generator, shape_of(index, size, square=recipe.square), recipe.palette)


def stem(name: str, index: int, *, images: int = DEFAULT_IMAGES) -> str:
    """The ``index``-th stem of a sample of so many images."""
    return _recipe(name).stem(index, images)


def _recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise DatasetError(f"no sample of {name!r} can be generated (choose from {', '.join((*RECIPES, *UNIONS))})")
    return RECIPES[name]


def _deal(parts: tuple[str, ...], count: int) -> list[str]:
    """Part of every image: a fifth for validation, a fifth for test, at least two a folder, the rest for training."""
    if parts == ("all",):
        return ["all"] * count
    others = [part for part in parts if part != "train"]
    folders = {"val": sum(part.startswith("val") for part in others)}
    dealt: list[str] = []
    for part in others:
        siblings = folders["val"] if part.startswith("val") else len(others) - folders["val"]
        dealt += [part] * max(2, count // 5 // siblings)
    return ["train"] * (count - len(dealt)) + dealt


def _write_pair(folder: Path, tree: Tree, part: str, index: int, *, content: Scene, stem: str) -> tuple[str, str]:
    images, masks = tree.parts[part]
    image_name = f"{images}/{stem}{tree.image_suffix}"
    mask_name = f"{masks}/{stem}{tree.mask_names[index % len(tree.mask_names)]}"
    if tree.save_image is not None:
        tree.save_image(folder / image_name, content.image)
    else:
        Image.fromarray(content.image).save(folder / image_name, quality=92)  # only JPEG knows a quality
    tree.encode[index % len(tree.encode)](folder / mask_name, content.classes)
    return image_name, mask_name


def _write_list(path: Path, rows: list[tuple[str, str]], *, indexed: bool) -> None:
    """AutoGluon's CSV; some of the published ones begin with an unnamed index column."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["", "image", "label"] if indexed else ["image", "label"])
        for number, (image, mask) in enumerate(rows):
            writer.writerow([number, image, mask] if indexed else [image, mask])
