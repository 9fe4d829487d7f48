"""Over a hundred folders of one's own data, most of them malformed, drawn with a fixed seed. Each is what somebody may have: a tool that
saves otherwise, a download that broke, names that went wrong. `test_malformed` reads them all: a valid one gives the masks that were
drawn, and of another one something is said, or it gives them too."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
from PIL import Image

SEED, COUNT = 60, 14
Array = np.ndarray[Any, Any]
Save = Callable[[Path, Array], Any]


class Input(NamedTuple):
    """``truth``: mask of every stem, {0, 1}. ``valid``: it must be read."""

    kind: str
    write: Callable[[Path], Any]
    truth: dict[str, Array]
    valid: bool


class Drawn:
    """Images with masks: rectangles aligned with the blocks of JPEG."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.height, self.width = 8 * rng.integers(5, 8), 8 * rng.integers(9, 13)
        self.truth: dict[str, Array] = {}
        for stem in rng.choice(np.arange(10, 99), COUNT, replace=False):
            mask = np.zeros((self.height, self.width), np.uint8)
            top, left = 8 * rng.integers(0, 2), 8 * rng.integers(0, 4)
            mask[top : top + 8 * rng.integers(1, 4), left : left + 8 * rng.integers(2, 5)] = 1
            self.truth[f"case{stem}"] = mask

    def photo(self) -> Array:
        return self.rng.integers(0, 255, (self.height, self.width, 3), dtype=np.uint8)

    def write(self, root: Path, image: str = "images/{}.jpg", mask: str = "masks/{}.png", **save: Save) -> None:
        """``images`` and ``masks``: how all are saved; ``one_image``, ``one_mask``: how one of them is."""
        for number, (stem, truth) in enumerate(self.truth.items()):
            for name, array, kind in ((image, self.photo(), "image"), (mask, truth, "mask")):
                path = root / name.format(stem)
                path.parent.mkdir(parents=True, exist_ok=True)
                plain = grey if kind == "mask" else pillow
                saved = save.get(f"{kind}s", plain)
                (save.get(f"one_{kind}", saved) if number == COUNT // 2 else saved)(path, array)


def pillow(path: Path, array: Array, mode: str = "", **options: Any) -> None:
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)


def grey(path: Path, mask: Array, level: int = 255, **options: Any) -> None:
    pillow(path, mask * np.uint8(level), **options)


def encoded(array: Array, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


def raw(content: bytes) -> Save:
    return lambda path, array: path.write_bytes(content)


def changed(change: Callable[[bytes], bytes], kind: str = "PNG") -> Save:
    return lambda path, array: path.write_bytes(change(encoded(array * np.uint8(255 if array.ndim == 2 else 1), kind)))


def tiff(kind: Any, level: float = 1, **options: Any) -> Save:
    return lambda path, mask: tifffile.imwrite(path, (mask.astype(np.int64) * level).astype(kind), **options)


def palette(*colours: tuple[int, int, int], **options: Any) -> Save:
    def save(path: Path, mask: Array) -> None:
        image = Image.fromarray(mask)
        image.putpalette([part for colour in colours for part in colour])
        image.save(path, **options)

    return save


def paint(*colour: int, **options: Any) -> Save:
    return lambda path, mask: pillow(path, mask[..., None] * np.array(colour, np.uint8), **options)


def opacity(path: Path, mask: Array) -> None:
    Image.fromarray(np.dstack([np.zeros((*mask.shape, 3), np.uint8), mask * np.uint8(255)])).save(path)


def picture(path: Path, array: Array) -> None:
    noise = np.random.default_rng(len(path.name)).integers(0, 255, (*array.shape[:2], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def shaped(change: Callable[[Array], Array]) -> Save:
    return lambda path, array: pillow(
        path, np.ascontiguousarray(change(array * np.uint8(255 if array.ndim == 2 else 1)))
    )


PLANES = tiff(np.uint8, 255, photometric="rgb", planarconfig="separate")
COLUMNS: Callable[[Array], Array] = lambda mask: np.indices(mask.shape)[1]  # noqa: E731
OF_FILES: dict[str, tuple[str, Save, bool]] = {  # kind -> the parts of the data, how they are saved, valid
    "cut off": ("one_mask", changed(lambda data: data[: len(data) * 2 // 3]), False),
    "a damaged checksum": ("one_mask", changed(lambda data: data[:-20] + bytes([data[-20] ^ 9]) + data[-19:]), False),
    "zeros in the middle": ("one_image", changed(lambda data: data[:60] + bytes(40) + data[100:]), False),
    "a web page": ("one_mask", raw(b"<!DOCTYPE html><html>404</html>"), False),
    "a pointer of Git LFS": ("masks", raw(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"), False),
    "numbers as text": ("one_mask", raw(b"0 0 1 1\n0 0 1 1\n"), False),
    "HEIC in JPEG's name": ("one_image", raw(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"), False),
    "PNG in JPEG's name": ("images", changed(lambda data: data), True),
    "bytes after the end": ("masks", changed(lambda data: data + b"trailer"), True),
    "one bit": ("masks", lambda path, mask: pillow(path, mask.astype(bool)), True),
    "two bits": ("masks", partial(grey, bits=2), True),
    "a palette of two greys": ("masks", palette((0, 0, 0), (255, 255, 255)), True),
    "a palette of four bits": ("masks", palette((0, 0, 0), (9, 90, 200), bits=4), True),
    "a palette, white first": ("masks", lambda path, mask: palette((255,) * 3, (0,) * 3)(path, 1 - mask), True),
    "a palette of blacks, one clear": ("masks", palette((0,) * 3, (0,) * 3, transparency=bytes([0, 255])), False),
    "a palette of dark shades": ("masks", palette((1, 1, 1), (3, 3, 3)), False),
    "a palette of one colour": ("masks", palette((200, 0, 0), (200, 0, 0)), False),
    "a clear colour": ("masks", partial(grey, transparency=0), True),
    "drawn in opacity": ("masks", opacity, False),
    "grey with opacity": ("masks", partial(grey, mode="LA"), True),
    "CMYK": ("masks", lambda path, mask: grey(path.with_suffix(".tif"), mask, mode="CMYK"), False),
    "LAB": ("masks", lambda path, mask: Image.merge("LAB", [Image.fromarray(mask * np.uint8(255))] * 3).save(path, "TIFF"), False),
    "floats of 0 and 1": ("masks", tiff(np.float32), False),
    "doubles": ("masks", tiff(np.float64, 255), False),
    "32 bits": ("masks", tiff(np.int32), True),
    "16 bits, full": ("masks", tiff(np.uint16, 65535), True),
    "16 bits, signed": ("masks", tiff(np.int16, -1), False),
    "64 bits": ("masks", tiff(np.int64, 1), False),
    "booleans, white is nought": ("masks", tiff(bool), False),
    "compressed strips": ("masks", lambda path, mask: grey(path, mask, format="TIFF", compression="tiff_lzw"), True),
    "planes": ("masks", lambda path, mask: PLANES(path, np.stack([mask] * 3)), True),
    "white is nought": ("masks", lambda path, mask: tiff(np.uint8, 255, photometric="miniswhite")(path, 1 - mask), True),
    "a JPEG of low quality": ("masks", partial(grey, format="JPEG", quality=30), True),
    "a JPEG in colour": ("masks", paint(200, 0, 0, format="JPEG"), False),
    "a JPEG of indices": ("masks", partial(grey, level=1, format="JPEG"), False),
    "WebP, lossless": ("masks", partial(grey, format="WEBP", lossless=True), True),
    "BMP in PNG's name": ("masks", partial(grey, format="BMP"), True),
    "not quite grey": ("masks", paint(255, 255, 250), True),
    "another colour a file": ("masks", lambda path, mask: paint(9, 99, int(path.stem[-2:]))(path, mask), True),
    "on its side": ("masks", shaped(lambda mask: mask.T), False),
    "half of it": ("one_mask", shaped(lambda mask: mask[:, : mask.shape[1] // 2]), False),
    "a channel too many": ("masks", lambda path, mask: tiff(np.uint8)(path, np.stack([mask] * 5, -1)), False),
    "a photograph": ("one_mask", picture, False),
    "photographs": ("masks", picture, False),
    "contours": ("masks", lambda path, mask: grey(path, mask ^ np.roll(mask, 1, 1), level=60), False),
    "distances": ("masks", lambda path, mask: pillow(path, (mask * COLUMNS(mask)).astype(np.uint8)), False),
    "a gradient": ("one_mask", lambda path, mask: pillow(path, (COLUMNS(mask) * 255 / mask.shape[1]).astype(np.uint8)), False),
    "ids of objects": ("masks", lambda path, mask: pillow(path, (mask * (1 + COLUMNS(mask) // 8 % 5)).astype(np.uint8)), False),
    "all but nought": ("masks", lambda path, mask: grey(path, mask, level=77), False),
    "all grey": ("masks", lambda path, mask: pillow(path, mask * np.uint8(118) + np.uint8(10)), False),
    "all empty": ("masks", lambda path, mask: grey(path, mask, level=0), False),
    "all full": ("masks", lambda path, mask: grey(path, mask | 1), False),
    "images of grey": ("images", partial(pillow, mode="L"), True),
    "images of CMYK": ("images", partial(pillow, mode="CMYK"), True),
    "images with opacity": ("images", lambda path, array: pillow(path, array, mode="RGBA", format="PNG"), True),
    "images of a palette": ("images", lambda path, array: pillow(path, array, mode="P", format="PNG"), True),
    "images of floats": ("images", lambda path, array: tifffile.imwrite(path, array.astype(np.float32) / 255), False),
    "images of five bands": ("images", lambda path, array: tifffile.imwrite(path, np.dstack([array, array[..., :2]])), False),
    "progressive images": ("images", partial(pillow, progressive=True), True),
    "images with a damaged header": ("images", partial(pillow, exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), True),
    "an image of one pixel": ("one_image", shaped(lambda array: array[:1, :1]), False),
    "smaller images": ("images", shaped(lambda array: array[::2, ::2]), True),
}  # fmt: skip


def pairs_csv(
    drawn: Drawn, root: Path, rows: Callable[[str], list[str]], header: str = "image,label", **options: Any
) -> None:
    drawn.write(root, "a/{}.jpg", "b/{}.png")
    with (root / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file, **options)
        writer.writerows([header.split(","), *map(rows, drawn.truth)])


def coco(
    drawn: Drawn, root: Path, change: Callable[[dict], Any] = lambda content: None, encoding: str = "utf-8"
) -> None:
    drawn.write(root, "{}.png", "masks/{}.png")
    for path in (root / "masks").iterdir():
        path.unlink()
    (root / "masks").rmdir()
    content: dict[str, Any] = {"categories": [{"id": 1, "name": "cell"}], "images": [], "annotations": []}
    for number, (stem, mask) in enumerate(drawn.truth.items()):
        (top, bottom), (left, right) = ((int(at.min()), int(at.max()) + 1) for at in np.nonzero(mask))
        outline = [left, top, right, top, right, bottom, left, bottom]
        content["images"].append(
            {"id": number, "file_name": f"{stem}.png", "height": int(drawn.height), "width": int(drawn.width)}
        )
        content["annotations"].append(
            {"id": number, "image_id": number, "category_id": 1, "segmentation": [outline], "iscrowd": 0}
        )
    change(content)
    (root / "labels.json").write_text(json.dumps(content), encoding=encoding)


def every(table: str, **fields: Any) -> Callable[[dict], Any]:
    return lambda content: [each.update(fields) for each in content[table]]


def shapes(change: Callable[[list], Any]) -> Callable[[dict], Any]:
    return lambda content: [
        each.update(segmentation=change(each["segmentation"][0])) for each in content["annotations"]
    ]


def nnunet(drawn: Drawn, root: Path, labels: dict[str, Any], level: int = 1) -> None:
    drawn.write(root, "imagesTr/{}_0000.png", "labelsTr/{}.png", masks=partial(grey, level=level))
    (root / "dataset.json").write_text(json.dumps({"labels": labels}))


def classes(drawn: Drawn, root: Path, content: bytes, level: int = 1) -> None:
    drawn.write(root, masks=partial(grey, level=level))
    (root / "classes.txt").write_bytes(content)


def beside(drawn: Drawn, root: Path, *names: str, content: bytes = b"x") -> None:
    drawn.write(root)
    for name in names:
        (root / name).write_bytes(content)


def then(drawn: Drawn, root: Path, change: Callable[[Path, str], Any]) -> None:
    drawn.write(root)
    change(root, list(drawn.truth)[3])


def two_masks(root: Path, stem: str) -> None:
    mask = root / f"masks/{stem}.png"
    mask.with_name(f"{stem}_gt.png").write_bytes(mask.read_bytes())
    mask.rename(mask.with_name(f"{stem}_mask.png"))


FOLDERS: dict[str, tuple[Callable[[Drawn, Path], Any], bool]] = {
    "upper-case endings": (partial(Drawn.write, image="images/{}.JPG", mask="masks/{}.PNG"), True),
    "dots and blanks": (partial(Drawn.write, image="images/scan 1.{}.v2.jpg", mask="masks/scan 1.{}.v2_mask.png"), True),
    "two endings": (partial(Drawn.write, mask="masks/{}.jpg.png"), True),
    "Cyrillic": (partial(Drawn.write, image="images/снимок_{}.jpg", mask="masks/маска_{}.png"), True),
    "images and masks exchanged": (partial(Drawn.write, image="masks/{}.png", mask="images/{}.png"), False),
    "what file managers leave": (lambda d, r: beside(d, r, "images/.DS_Store", "images/._a.jpg", "masks/Thumbs.db"), True),
    "a download that did not end": (lambda d, r: beside(d, r, "masks/x.png.part", "images/y.jpg.crdownload"), True),
    "an empty file more": (lambda d, r: beside(d, r, "images/new.jpg", content=b""), False),
    "numbers shifted": (lambda d, r: then(d, r, lambda root, stem: (root / f"masks/{stem}.png").rename(root / "masks/case0.png")), False),
    "two masks of one image": (lambda d, r: then(d, r, two_masks), False),
    "a folder named as a mask": (lambda d, r: then(d, r, lambda root, stem: (root / "masks/more.png").mkdir()), False),
    "a link to itself": (lambda d, r: then(d, r, lambda root, stem: os.symlink("loop.jpg", root / "images/loop.jpg")), False),
    "a link to nothing": (lambda d, r: then(d, r, lambda root, stem: os.symlink("/no/such", root / "masks/more.png")), False),
    "classes in UTF-16": (lambda d, r: classes(d, r, "ground\ntree\n".encode("utf-16")), True),
    "classes on one line": (lambda d, r: classes(d, r, b"ground, tree"), False),
    "classes of Windows": (lambda d, r: classes(d, r, "\ufeffground\r\ntree\r\n\r\n".encode()), True),
    "classes with a nought": (lambda d, r: classes(d, r, b"ground\0\ntree\n"), False),
    "classes with tabs": (lambda d, r: classes(d, r, b"ground\t0, 0, 0\ntree\t255, 255, 255", level=255), True),
    "colours in hexadecimal": (lambda d, r: classes(d, r, b"ground #000000\ntree #ffffff", level=255), False),
    "colours in brackets": (lambda d, r: classes(d, r, b"ground (0,0,0)\ntree (255,255,255)", level=255), False),
    "an index beyond the classes": (lambda d, r: classes(d, r, b"ground\ntree\n", level=2), False),
    "names with commas": (lambda d, r: pairs_csv(d, r, lambda s: [f"a/{s}.jpg", f"b/{s}.png", "left, upper"], "image,label,where"), True),
    "blanks in a list": (lambda d, r: pairs_csv(d, r, lambda s: [f" a/{s}.jpg ", f"b/{s}.png "], " image,label "), True),
    "line ends of an old Mac": (lambda d, r: pairs_csv(d, r, lambda s: [f"a/{s}.jpg", f"b/{s}.png"], lineterminator="\r"), True),
    "paths from the root": (lambda d, r: pairs_csv(d, r, lambda s: [str(r / f"a/{s}.jpg"), str(r / f"b/{s}.png")]), True),
    "addresses": (lambda d, r: pairs_csv(d, r, lambda s: [f"https://x.org/{s}.jpg", f"b/{s}.png"]), False),
    "escaped names": (lambda d, r: pairs_csv(d, r, lambda s: [f"a%2F{s}.jpg", f"b/{s}.png"]), False),
    "every row twice": (lambda d, r: pairs_csv(d, r, lambda s: [f"a/{s}.jpg", f"b/{s}.png\na/{s}.jpg"]), False),
    "COCO": (coco, True),
    "COCO with a mark": (partial(coco, encoding="utf-8-sig"), True),
    "COCO in UTF-16": (partial(coco, encoding="utf-16"), False),
    "COCO, a shape twice": (partial(coco, change=lambda c: c["annotations"].extend(c["annotations"][:3])), True),
    "COCO, height and width exchanged": (partial(coco, change=every("images", height=50, width=50)), False),
    "COCO, coordinates as text": (partial(coco, change=shapes(lambda s: [[str(x) for x in s]])), False),
    "COCO, y before x beyond the image": (partial(coco, change=shapes(lambda s: [[9e6 * x for x in s]])), False),
    "COCO, points as pairs": (partial(coco, change=shapes(lambda s: [[s[i : i + 2] for i in range(0, 8, 2)]])), False),
    "COCO, boxes": (partial(coco, change=every("annotations", segmentation=[], bbox=[0, 0, 9, 9])), False),
    "COCO, no such image": (partial(coco, change=every("annotations", image_id=77)), False),
    "COCO, a list as a table": (partial(coco, change=lambda c: c.update(images={str(i["id"]): i for i in c["images"]})), False),
    "COCO, a category without a name": (partial(coco, change=lambda c: c.update(categories=[{"id": 1}])), False),
    "COCO, no size": (partial(coco, change=every("images", height=None)), False),
    "COCO, absolute names": (partial(coco, change=lambda c: [i.update(file_name="/data/" + i["file_name"]) for i in c["images"]]), False),
    "nnU-Net's first version": (lambda d, r: nnunet(d, r, {"0": "background", "1": "liver"}), False),
    "nnU-Net, regions": (lambda d, r: nnunet(d, r, {"background": 0, "whole": [1, 2], "core": 2}), False),
    "nnU-Net, a gap": (lambda d, r: nnunet(d, r, {"background": 0, "liver": 2}, level=2), False),
    "nnU-Net, truth values": (lambda d, r: nnunet(d, r, {"background": False, "liver": True}), True),
    "nnU-Net, labels as text": (lambda d, r: nnunet(d, r, {"background": "0", "liver": "1"}), True),
}  # fmt: skip
"""Kind -> how its folder is written, and whether it must be read."""


def inputs(seed: int = SEED) -> Iterator[Input]:
    """All kinds, each with sizes, masks and names of its own."""
    for number, (kind, (part, save, valid)) in enumerate(OF_FILES.items()):
        drawn = Drawn(np.random.default_rng([seed, number]))
        saved: dict[str, Any] = {part: save}
        yield Input(kind, partial(drawn.write, **saved), drawn.truth, valid)
    for number, (kind, (write, valid)) in enumerate(FOLDERS.items()):
        drawn = Drawn(np.random.default_rng([seed, 1, number]))
        yield Input(kind, partial(write, drawn), drawn.truth, valid)
