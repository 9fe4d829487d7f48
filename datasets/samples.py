"""Generated stand-ins for the benchmarks in the layouts and encodings of the real archives. Deterministic, quick.

    path = harness.datasets.samples.write_samples("kvasir", Path("data"))

A tiny network can find the masks within a few epochs: objects differ from their background in colour. Every sample carries a marker, so
that no table can pass it off as the benchmark.
"""

from __future__ import annotations

import colorsys
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from harness.datasets.base import DatasetError
from harness.datasets.readers.folder_benchmark import SAMPLE_MARKER
from harness.datasets.readers.layouts import FolderLayout

Array = NDArray[np.uint8]
Size = tuple[int, int]
Colour = tuple[int, int, int]
Encode = Callable[[Path, Array], None]
"""Writes an image (H, W, 3), or class indices (H, W), to a file as the published archives do."""

DEFAULT_IMAGES = 36
DEFAULT_SIZE = 112
GENERATOR = 1
"""Counts up with every change that changes the files."""

# (height, width) factors of the sample's side: odd sizes, portrait, landscape and square.
_ASPECTS = ((1.0, 1.0), (0.8, 1.1), (1.15, 0.9), (0.77, 1.03), (1.0, 1.31), (0.93, 0.71))


# --- scenes


class Scene(NamedTuple):
    """image (H, W, 3) uint8; classes (H, W) uint8 class indices."""

    image: Array
    classes: Array


def wheel(count: int) -> tuple[Colour, ...]:
    """``count`` colours that differ in hue."""
    colours = (colorsys.hsv_to_rgb(index / count, 0.8, 0.6 + 0.4 * (index % 2)) for index in range(count))
    return tuple((int(255 * red), int(255 * green), int(255 * blue)) for red, green, blue in colours)


def _shape_of(index: int, side: int, *, square: bool) -> Size:
    """(height, width) of the sample's ``index``-th image."""
    if square:
        return side, side
    height, width = _ASPECTS[index % len(_ASPECTS)]
    return round(side * height) | 1 if index % 2 else round(side * height), round(side * width)


def draw_scene(generator: np.random.Generator, shape: Size, colours: Sequence[Colour], *, lines: bool = False) -> Scene:
    """One scene: smooth noise over the background, one to three coloured objects, each of one class.

    Args:
        colours: RGB of the background and of class 1, 2, …
        lines: objects are lines (roads) and not blobs.
    """
    height, width = shape
    classes = np.zeros(shape, dtype=np.uint8)
    for _ in range(int(generator.integers(1, 4))):
        outline = _line(generator, shape) if lines else _blob(generator, shape)
        classes[outline] = generator.integers(1, len(colours))
    paints = np.array(colours, dtype=np.float64) + generator.normal(0, 8, size=(1, 3))
    coarse = generator.normal(0, 1, size=(-(-height // 8), -(-width // 8), 3))
    texture = ndimage.zoom(coarse, (8, 8, 1), order=1)[:height, :width] * 14
    image = paints[classes] + texture + generator.normal(0, 6, size=(height, width, 3))
    return Scene(image=np.clip(image, 0, 254).astype(np.uint8), classes=classes)


def _grid(shape: Size) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return rows / shape[0], columns / shape[1]


def _blob(generator: np.random.Generator, shape: Size) -> NDArray[np.bool_]:
    rows, columns = _grid(shape)
    row, column = generator.uniform(0.2, 0.8, size=2)
    tall, wide = generator.uniform(0.12, 0.3, size=2)
    angle = np.arctan2(rows - row, columns - column)
    ripple = 1 + 0.15 * np.sin(3 * angle + generator.uniform(0, 6))
    return ((rows - row) / tall) ** 2 + ((columns - column) / wide) ** 2 <= ripple


def _line(generator: np.random.Generator, shape: Size) -> NDArray[np.bool_]:
    rows, columns = _grid(shape)
    angle = generator.uniform(0, np.pi)
    offset = generator.uniform(0.25, 0.75, size=2)
    distance = (rows - offset[0]) * np.cos(angle) + (columns - offset[1]) * np.sin(angle)
    return np.abs(distance + 0.03 * np.sin(6 * columns)) <= 0.035


# --- encodings of the published archives


def rgb(path: Path, image: Array) -> None:
    """An image, or levels of grey that are class indices (Trans10K-v2)."""
    Image.fromarray(image).save(path, quality=92)  # only JPEG knows a quality


def mislabelled_tiff(path: Path, image: Array) -> None:
    """RGB in a TIFF that calls itself grey, which Pillow refuses (the original CVC-ClinicDB frames)."""
    tifffile.imwrite(path, image, photometric="rgb", metadata=None)
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages.first.tags["PhotometricInterpretation"].overwrite(tifffile.PHOTOMETRIC.MINISBLACK)


def jpeg_noise(path: Path, classes: Array) -> None:
    """0/255 through JPEG: values near 0 and near 255, edges in between (Kvasir-SEG)."""
    Image.fromarray(classes * np.uint8(255)).save(path, format="JPEG", quality=75)


def grey(path: Path, classes: Array, *, white: int = 255) -> None:
    """0 and ``white``, one channel."""
    Image.fromarray(classes * np.uint8(white)).save(path)


def three_channels(path: Path, classes: Array) -> None:
    """0/255 three times."""
    Image.fromarray(np.repeat((classes * np.uint8(255))[..., None], 3, axis=2)).save(path)


def palette_png(path: Path, classes: Array) -> None:
    """Palette indices 0 and 1, coloured black and dark red: the grey view is 0 and 38 (Leaf)."""
    image = Image.fromarray(classes)
    image.putpalette([0, 0, 0, 128, 0, 0])
    image.save(path)


def channel_means(path: Path, classes: Array) -> None:
    """Background black, things red (mean 85), stuff white (Trans10K-v1)."""
    colours = np.array([(0, 0, 0), (255, 0, 0), (255, 255, 255)], dtype=np.uint8)
    Image.fromarray(colours[classes]).save(path)


# --- benchmarks


class Tree(NamedTuple):
    """One layout of one benchmark."""

    folder: str  # below the data root
    parts: Mapping[str, tuple[str, str]]  # part (`val+easy` for a folder of several) -> (image folder, mask folder)
    suffix: str = ".jpg"  # of images
    mask_names: tuple[str, ...] = (".png",)  # endings, one after the other: real archives are not consistent
    encode: tuple[Encode, ...] = (grey,)  # of masks, one after the other
    save_image: Encode = rgb


def tree_of(name: str, layout: str = "original", **form: Any) -> Tree:
    """The tree of a benchmark's layout of folders, by the first name of each. ``form``: the other fields of `Tree`."""
    module = import_module(f"harness.datasets.{name}")  # no other benchmark is imported
    benchmark: Any = next(each for each in vars(module).values() if getattr(each, "name", "") == name)
    (parts,) = (each.parts for each in benchmark().layouts() if isinstance(each, FolderLayout) and each.name == layout)
    folders = {name: tuple(re.sub(r"\|[^/]*", "", of) for of in (p.images, p.masks)) for name, p in parts.items()}
    return Tree(**{"folder": benchmark.folders[0], "parts": folders, **form})


class Recipe(NamedTuple):
    """How a benchmark's samples look: ``colours`` and ``lines`` as in `draw_scene`. ``stem``: (index, how many images in all) -> stem;
    ``form``: what `tree_of` is given; ``square``: all images are of one square size."""

    colours: tuple[Colour, ...]
    stem: Callable[[int, int], str]
    form: Mapping[str, Any]
    lines: bool = False
    square: bool = False


POLYP = ((178, 92, 78), (228, 158, 70))
RECIPES: Mapping[str, Recipe] = {
    "kvasir": Recipe(
        POLYP,
        lambda index, count: "cju" + sha256(f"kvasir {index}".encode()).hexdigest()[:22],
        {"mask_names": (".jpg",), "encode": (jpeg_noise,)},
    ),
    "cvc612": Recipe(
        POLYP,
        lambda index, count: str(1 + round(index * 611 / max(1, count - 1))),  # spread over the 29 sequences
        {
            "suffix": ".tif",
            "mask_names": (".tif",),
            "encode": (grey, three_channels),
            "save_image": mislabelled_tiff,
        },
    ),
    "isic2017": Recipe(
        ((214, 170, 150), (96, 58, 48)),
        lambda index, count: f"ISIC_{index:07d}",
        {"mask_names": ("_segmentation.png", "_segmentation.png", "_Segmentation.PNG")},
    ),
    "camo": Recipe(
        ((92, 112, 70), (140, 120, 82)),
        lambda index, count: f"camourflage_{index:05d}",
        {"encode": (grey, partial(grey, white=237))},  # white that only reaches 237
    ),
    "sbu": Recipe(((182, 178, 168), (72, 72, 84)), lambda index, count: f"lssd{index:04d}", {}),
    "leaf": Recipe(
        ((70, 132, 58), (150, 104, 52)),
        lambda index, count: f"{index:05d}",
        {"parts": {"all": ("data/data/images", "data/data/masks")}, "encode": (palette_png,)},
    ),
    "road": Recipe(
        ((96, 112, 84), (190, 188, 182)),
        lambda index, count: f"{10078660 + 15 * index}_15",
        {"suffix": ".tiff", "mask_names": (".tif",), "encode": (grey, three_channels)},
        lines=True,
        square=True,
    ),
    "trans10k_v1": Recipe(
        ((120, 110, 100), (90, 160, 200), (190, 210, 120)),
        lambda index, count: str(index + 1),
        {"mask_names": ("_mask.png",), "encode": (channel_means,)},
    ),
    "trans10k_v2": Recipe(
        ((110, 110, 110), *wheel(11)),
        lambda index, count: str(index + 1),
        {"mask_names": ("_mask.png",), "encode": (rgb,)},
    ),
}


# --- writing


def write_samples(
    name: str,
    root: Path,
    *,
    images: int = DEFAULT_IMAGES,
    size: int = DEFAULT_SIZE,
    layout: tuple[str, Tree] | None = None,
) -> Path:
    """Write a sample of benchmark ``name`` below ``root``; returns the benchmark's folder.

    Args:
        name: canonical name, such as ``kvasir``.
        root: data root; made if absent. The very same sample that is there is kept.
        images: how many images in all; 12 are enough for every benchmark's splits.
        size: side of the images in pixels; most benchmarks vary around it in size and aspect ratio.
        layout: name and tree of another layout than the original one.

    Raises:
        DatasetError: unknown benchmark, or other data in the way.
    """
    if name not in RECIPES:
        raise DatasetError(f"no sample of {name!r} can be generated (choose from {', '.join(RECIPES)})")
    called, tree = layout or ("original", tree_of(name, **RECIPES[name].form))
    folder, top = root / tree.folder, tree.folder.split("/", maxsplit=1)[0]
    marker = f"generated: {name}, layout {called}, {images} images of {size} px, seed 0, generator {GENERATOR}\n"
    if _is_there(root / top, folder, marker):
        return folder
    root.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".sampling-", dir=root) as made:
        staging = Path(made)
        _write_tree(name, staging / tree.folder, tree=tree, count=images, size=size)
        (staging / tree.folder / SAMPLE_MARKER).write_text(marker, encoding="utf-8")
        try:
            (staging / top).rename(root / top)
        except OSError:
            # Another process may have put the very same sample there meanwhile; then it serves as well.
            if not _is_there(root / top, folder, marker):
                raise
    return folder


def _is_there(top: Path, folder: Path, marker: str) -> bool:
    """Whether exactly this sample is there already. Raises DatasetError: something else is."""
    if not top.exists():
        return False
    path = folder / SAMPLE_MARKER
    if not path.is_file() or path.read_text(encoding="utf-8").partition("\n")[0] != marker.strip():
        raise DatasetError(f"{top} is there and not this generated sample; choose another folder, or remove it")
    return True


def _write_tree(name: str, folder: Path, *, tree: Tree, count: int, size: int) -> None:
    rows: dict[str, list[Path]] = {}
    for number, part in enumerate(_deal(tuple(tree.parts), count)):
        content, stem = scene(name, number, size=size), RECIPES[name].stem(number, count)
        images, masks = (folder / path for path in tree.parts[part])
        images.mkdir(parents=True, exist_ok=True)
        masks.mkdir(parents=True, exist_ok=True)
        rows.setdefault(part, []).append(images / f"{stem}{tree.suffix}")
        tree.save_image(rows[part][-1], content.image)
        mask = masks / f"{stem}{tree.mask_names[number % len(tree.mask_names)]}"
        tree.encode[number % len(tree.encode)](mask, content.classes)
    if name == "road":  # missing imagery is white
        for path in [path for part in tree.parts for path in rows.get(part, [])][::5]:
            pixels = np.array(Image.open(path))
            pixels[:, -pixels.shape[1] // 4 :] = 255
            Image.fromarray(pixels).save(path)
    if name == "sbu" and tree == tree_of(name):  # some training images have no mask
        generator = np.random.default_rng([0, 99])
        for number in range(2):
            pixels = generator.integers(0, 255, size=(size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(rows["train"][0].with_name(f"without_mask_{number}.jpg"))


def scene(name: str, number: int, *, size: int = DEFAULT_SIZE) -> Scene:
    """The scene of a sample's image before it is encoded: what a reader must get back."""
    recipe = RECIPES[name]
    generator = np.random.default_rng([0, *name.encode(), number])
    return draw_scene(generator, _shape_of(number, size, square=recipe.square), recipe.colours, lines=recipe.lines)


def _deal(parts: tuple[str, ...], count: int) -> list[str]:
    """Part of every image: a fifth for validation, a fifth for test, at least two per folder, the rest for training."""
    if parts == ("all",):
        return ["all"] * count
    others = [part for part in parts if part != "train"]
    folders = {"val": sum(part.startswith("val") for part in others)}
    dealt: list[str] = []
    for part in others:
        siblings = folders["val"] if part.startswith("val") else len(others) - folders["val"]
        dealt += [part] * max(2, count // 5 // siblings)
    return ["train"] * (count - len(dealt)) + dealt
