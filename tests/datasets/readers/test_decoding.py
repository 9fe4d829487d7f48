"""Files to arrays, exactly, whatever the encoding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.datasets import samples as encodings
from harness.datasets.base import DatasetError
from harness.datasets.readers.decoding import (
    fit,
    read_binary,
    read_channel_means,
    read_colours,
    read_image,
    read_indices,
)

RNG = np.random.default_rng(0)


@pytest.fixture
def disc() -> np.ndarray:
    rows, columns = np.mgrid[:45, :61]
    return (((rows - 22) ** 2 + (columns - 30) ** 2) < 200).astype(np.uint8)


def palette(values: np.ndarray, *colours: tuple[int, int, int]) -> Image.Image:
    image = Image.fromarray(values)
    image.putpalette([part for colour in colours for part in colour])
    return image


def coloured(disc: np.ndarray, *rows: tuple[int, int, int]) -> Image.Image:
    """A black image whose first rows have these colours."""
    pixels = np.zeros((*disc.shape, 3), np.uint8)
    pixels[: len(rows)] = np.array(rows, np.uint8)[:, None]
    return Image.fromarray(pixels)


def layered(red: Any, opacity: np.ndarray) -> Image.Image:
    planes = [np.zeros_like(opacity) + np.uint8(red), *[np.zeros_like(opacity)] * 2, opacity]
    return Image.fromarray(np.dstack(planes))


BLACK, WHITE, RED, GREEN, WINE = (0, 0, 0), (255, 255, 255), (128, 0, 0), (0, 128, 0), (30, 0, 0)
TWO = {"rule": "two levels"}
MASKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "a palette that lists white before black": (lambda disc: palette(1 - disc, WHITE, BLACK), {}),
    "grey with full opacity": (lambda disc: Image.fromarray(disc * np.uint8(255)).convert("LA"), {}),
    "colours of grey with full opacity": (lambda disc: Image.fromarray(disc * np.uint8(255)).convert("RGBA"), {}),
    "sixteen bits": (lambda disc: Image.fromarray(disc.astype(np.uint16) * 65535), {}),
    "eight bits in sixteen": (lambda disc: Image.fromarray(disc.astype(np.uint16) * 255), {}),
    "one colour, with its opacity": (lambda disc: layered(disc * 200, disc * np.uint8(255)), {"colour": "any"}),
    "dark foreground": (lambda disc: Image.fromarray(disc * np.uint8(9)), {"rule": "nonzero"}),
}


@pytest.mark.parametrize("kind", MASKS)
def test_a_mask_is_read_however_it_is_drawn(tmp_path: Path, disc: np.ndarray, kind: str) -> None:
    draw, rule = MASKS[kind]
    draw(disc).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_binary(tmp_path / "mask.png", **rule), disc)


def test_grey_palette_with_soft_edges_is_thresholded_as_grey_levels(tmp_path: Path) -> None:
    levels = np.tile(np.repeat(np.array([0, 90, 200, 255], np.uint8), [100, 1, 1, 100]), (50, 1))
    palette(levels, *((level,) * 3 for level in range(256))).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_binary(tmp_path / "mask.png"), levels > 127)


def instances(count: int, *, shuffled: bool = False) -> np.ndarray:
    """Small objects with an id each, (H, W) uint8."""
    ids = np.arange(1, count + 1, dtype=np.uint8)
    if shuffled:
        RNG.shuffle(ids)
    drawn = np.zeros((20, 20, 8, 8), np.uint8)
    drawn.reshape(-1, 8, 8)[:count, 2:6, 2:6] = ids[:, None, None]
    return np.ascontiguousarray(drawn.transpose(0, 2, 1, 3).reshape(160, 160))


def third_levels(disc: np.ndarray, *levels: int, area: int) -> Image.Image:
    """A white disc, and in a corner so many pixels of each of some levels."""
    values = disc * np.uint8(255)
    for row, level in enumerate(levels):
        values.reshape(-1)[4 * row * disc.shape[1] :][:area] = level
    return Image.fromarray(values)


def soft_edges(*, dots: Sequence[int] = (), side: int = 3) -> Image.Image:
    """A disc with soft edges, and dots of some levels away from it."""
    rows, columns = np.mgrid[:200, :200]
    values = (np.clip((20 - np.hypot(rows - 100, columns - 100)) / 2, 0, 1) * 255).astype(np.uint8)
    for number, level in enumerate(dots):
        values[5 * (number // 35) :, 5 * (number % 35) :][:side, :side] = level
    return Image.fromarray(values)


def shaded_object() -> Image.Image:
    """A disc with soft edges, and a dark object without a flat place."""
    values = np.array(soft_edges())
    values[5:9, 5:9] = np.arange(60, 76).reshape(4, 4)
    return Image.fromarray(values)


REFUSED: dict[str, list[tuple[Any, dict[str, Any]]]] = {
    "two colours and neither is black": [(lambda disc: palette(disc, (68, 1, 84), (253, 231, 37)), {})],
    "0, 128, 255": [(lambda disc: Image.fromarray(np.tile(np.array([0, 128, 255], np.uint8), (20, 30))), {})],
    "0, 210, 255": [
        (lambda disc: Image.fromarray(np.tile(np.array([0, 210, *[255] * 4, *[0] * 14], np.uint8), (20, 1))), {})
    ],
    "0, 38": [(lambda disc: Image.fromarray(disc * np.uint8(38)), {})],
    "256 values": [(lambda disc: Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (40, 1))), {})],
    "0, 1, 2": [(lambda disc: palette(np.tile(np.arange(3, dtype=np.uint8), (9, 1)), BLACK, RED, GREEN), {})],
    "has the colours 0,0,0; 0,128,0; 128,0,0": [
        (lambda disc: coloured(disc, RED, GREEN), {"colour": colour}) for colour in ("any", RED)
    ],
    "areas of two shades": [
        (lambda disc: coloured(disc, *[WINE] * 3, *[RED] * 4), {"colour": "any", **TWO}),
        (
            lambda disc: Image.merge("RGB", [third_levels(disc, 17, area=2), *[Image.fromarray(disc * 0)] * 2]),
            {"colour": "any", **TWO},
        ),
    ],
    "mask values 0, 1, 65535": [
        (lambda disc: Image.fromarray(np.where(np.roll(disc, 30, 1) > 0, 65535, disc.astype(np.uint16))), TWO)
    ],
    "objects at levels up to 75 alone": [(lambda disc: shaded_object(), TWO)],
    "255 may be an area to ignore": [
        (lambda disc: Image.fromarray(np.where(np.roll(disc, 30, 1) > 0, 255, disc).astype(np.uint8)), {})
    ],
    "colour image": [(lambda disc: coloured(disc, RED, GREEN), {})],
    "partly transparent": [
        (lambda disc: layered(0, disc * np.uint8(255)), {}),
        (lambda disc: Image.fromarray(np.dstack([disc * 0 + 255, disc * 255]).astype(np.uint8), "LA"), {}),
    ],
    "ids of objects": [
        (lambda disc: Image.fromarray(instances(160)), TWO),
        (lambda disc: Image.fromarray(instances(160, shuffled=True)), TWO),
        (lambda disc: Image.fromarray(instances(250) * np.uint16(257)), TWO),
    ],
    **{
        f"mask values {', '.join(map(str, [0, *more, 255]))}": [
            (lambda disc, more=more, area=area: third_levels(disc, *more, area=area), TWO) for area in (1, 9, 90)
        ]
        for more in ([2], [11], [31], [127], [128], [200], [250], [254], [7, 9], [7, 9, 11, 40])
    },
    "mask values 0, 128, 255": [(lambda disc: Image.fromarray(128 + 127 * disc), TWO)],
    "not at edges alone": [
        (lambda disc: soft_edges(dots=(20,) * 9), TWO),  # a class of its own among soft edges
        (lambda disc: soft_edges(dots=[*range(20, 120)], side=1), TWO),
    ],
}


@pytest.mark.parametrize(
    ("name", "level", "options"),
    [("a.webp", 17, {"lossless": True}), ("a.webp", 100, {"lossless": True}), ("a.jpg", 100, {"quality": 90})],
)
def test_a_third_level_is_refused_in_other_formats_too(tmp_path, disc, name: str, level: int, options) -> None:
    values = disc * np.uint8(255)
    values[2:8, 2:8] = level
    Image.fromarray(values).save(tmp_path / name, **options)
    with pytest.raises(DatasetError, match=r"mask values|objects at levels"):
        read_binary(tmp_path / name, rule="two levels")


@pytest.mark.parametrize("words", REFUSED)
def test_an_invalid_binary_mask_is_an_error_that_names_file_and_values(tmp_path, disc, words: str) -> None:
    for draw, rule in REFUSED[words]:
        draw(disc).save(tmp_path / "mask_7.png")
        with pytest.raises(DatasetError, match=rf"mask_7\.png.*{words}"):
            read_binary(tmp_path / "mask_7.png", **rule)


def test_blended_edges_are_not_taken_for_ids_of_objects(tmp_path: Path) -> None:
    """Also where a mask was scaled up from half its size: edges are flat there. And compression leaves levels far from edges."""
    soft = np.asarray(soft_edges())
    for quality in (50, 75, 95):
        Image.fromarray((soft > 127) * np.uint8(255)).save(tmp_path / "mask.jpg", quality=quality)
        noisy = np.asarray(Image.open(tmp_path / "mask.jpg"))
        Image.fromarray(noisy).save(tmp_path / "mask.png")
        np.testing.assert_array_equal(read_binary(tmp_path / "mask.png", rule="two levels"), noisy > 127)
    rows, columns = np.mgrid[:200, :200]
    edge = np.clip((60 - np.hypot(rows - 100, columns - 100)) / 8, 0, 1)
    levels = (edge * 255).astype(np.uint8)
    for scaled in (levels, np.repeat(np.repeat(levels[::2, ::2], 2, 0), 2, 1)):
        Image.fromarray(scaled).save(tmp_path / "mask.png")
        np.testing.assert_array_equal(read_binary(tmp_path / "mask.png", rule="two levels"), scaled > 127)


@pytest.mark.parametrize("options", [{"quality": 90}, {"format": "WEBP"}], ids=str)
def test_colour_in_a_lossy_file_is_refused(tmp_path: Path, disc, options) -> None:
    large = np.repeat(np.repeat(disc, 4, 0), 4, 1)
    Image.fromarray(large[..., None] * np.array([255, 0, 0], np.uint8)).save(tmp_path / "mask.jpg", **options)
    for colour, word in (((255, 0, 0), "save masks as PNG"), ("any", "save masks as PNG"), (None, "colour image")):
        with pytest.raises(DatasetError, match=word):
            read_binary(tmp_path / "mask.jpg", colour=colour)  # type: ignore[arg-type]


@pytest.mark.parametrize(("suffix", "options"), [("jpg", {"quality": 100}), ("webp", {"quality": 100})])
def test_a_lossy_format_of_dark_objects_is_refused_not_read_as_background(tmp_path: Path, disc, suffix, options):
    path = tmp_path / f"mask.{suffix}"
    Image.fromarray(disc * np.uint8(50)).save(path, **options)
    with pytest.raises(DatasetError, match=r"foreground is above 127 in [JW].* save masks as"):
        read_binary(path)


@pytest.mark.parametrize(("quality", "reached"), [(50, 20), (75, 2), (95, 1)])
def test_what_compression_leaves_in_an_empty_mask_is_background(tmp_path: Path, quality: int, reached: int) -> None:
    path = tmp_path / "mask.jpg"
    rows, columns = np.mgrid[:96, :96]
    mask = ((rows - 56) ** 2 + (columns - 38) ** 2 < 7**2).astype(np.uint8) * np.uint8(255)
    Image.fromarray(mask).save(path, quality=quality)
    Image.fromarray(np.asarray(Image.open(path))[:, 45:]).save(path, quality=quality)
    assert reached <= np.asarray(Image.open(path)).max() <= 127, "or this shows nothing"
    assert not read_binary(path).any()
    Image.new("L", (64, 64), 2).save(path)
    assert not read_binary(path).any()


@pytest.mark.parametrize("colour", [(128, 0, 0), (255, 255, 0), (20, 90, 200)])
def test_one_colour_on_black_is_foreground_where_half_of_it_is_there(tmp_path, disc, colour):
    share = np.repeat(np.repeat(disc, 8, 0), 8, 1).astype(np.float64)
    share[:, :8] = 0.6  # as at a blended edge
    share[:, 8:16] = 0.4
    path = tmp_path / "mask.png"
    Image.fromarray((share[..., None] * np.array(colour)).astype(np.uint8)).save(path)
    for given in (colour, "any"):
        np.testing.assert_array_equal(read_binary(path, colour=given), share > 0.5)


def test_red_of_the_leaf_masks_counts_from_64(tmp_path: Path) -> None:
    pixels = np.zeros((1, 129, 3), np.uint8)
    pixels[0, :, 0] = np.arange(129)
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    assert (read_binary(tmp_path / "mask.png", colour=(128, 0, 0))[0] == (np.arange(129) > 63)).all()
    assert not read_binary(tmp_path / "mask.png", colour=(128, 0, 0), only_255=True).any()


def test_class_indices_exact_and_checked(tmp_path: Path) -> None:
    classes = RNG.integers(0, 12, size=(33, 21), dtype=np.uint8)
    encodings.rgb(tmp_path / "a.png", classes)
    image = Image.fromarray(classes)
    image.putpalette(list(RNG.integers(0, 255, size=36)))
    image.save(tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        np.testing.assert_array_equal(read_indices(tmp_path / name, num_classes=12), classes)
    with pytest.raises(DatasetError, match=r"a\.png.*values 11"):
        read_indices(tmp_path / "a.png", num_classes=11)
    Image.fromarray(classes).save(tmp_path / "c.jpg")
    with pytest.raises(DatasetError, match="lossy"):
        read_indices(tmp_path / "c.jpg", num_classes=12)


def test_channel_means_are_classes(tmp_path: Path) -> None:
    classes = RNG.integers(0, 3, size=(17, 23), dtype=np.uint8)
    means = {0: 0, 85: 1, 255: 2}
    encodings.channel_means(tmp_path / "rgb.png", classes)
    Image.fromarray(np.array([0, 85, 255], np.uint8)[classes]).save(tmp_path / "grey.png")
    for name in ("rgb.png", "grey.png"):
        np.testing.assert_array_equal(read_channel_means(tmp_path / name, means=means), classes)
    Image.fromarray(np.full((4, 4, 3), (255, 255, 0), np.uint8)).save(tmp_path / "yellow.png")
    with pytest.raises(DatasetError, match=r"yellow\.png.*170"):
        read_channel_means(tmp_path / "yellow.png", means=means)


def _modes() -> dict[str, tuple[Image.Image, np.ndarray]]:
    rgb = RNG.integers(0, 255, size=(12, 18, 3), dtype=np.uint8)
    grey = rgb[..., 0]
    repeated = np.repeat(grey[..., None], 3, axis=2)
    palette = Image.fromarray(grey % 4)
    colours = RNG.integers(0, 255, size=(4, 3), dtype=np.uint8)
    palette.putpalette(list(colours.ravel()))
    alpha = np.dstack([rgb, RNG.integers(0, 255, size=(12, 18, 1), dtype=np.uint8)])
    bits = np.where(repeated > 127, 255, 0).astype(np.uint8)
    return {
        "RGB": (Image.fromarray(rgb), rgb),
        "RGBA": (Image.fromarray(alpha), rgb),
        "L": (Image.fromarray(grey), repeated),
        "LA": (Image.fromarray(np.dstack([grey, grey]), "LA"), repeated),
        "P": (palette, colours[grey % 4]),
        "1": (Image.fromarray(grey > 127), bits),
    }


def test_an_image_of_floats_is_refused_and_a_clear_palette_is_read_without_a_word(tmp_path: Path, recwarn) -> None:
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DatasetError, match="floats"):
        read_image(tmp_path / "a.tif")
    palette(np.eye(4, dtype=np.uint8), BLACK, RED).save(tmp_path / "b.png", transparency=bytes([0, 99]))
    assert read_image(tmp_path / "b.png")[0, 0].tolist() == [128, 0, 0]
    assert not recwarn.list


def test_painted_classes_that_are_clear_in_part_are_refused(tmp_path: Path, disc: np.ndarray) -> None:
    layered(0, disc * np.uint8(255)).save(tmp_path / "mask.png")
    with pytest.raises(DatasetError, match="partly transparent"):
        read_colours(tmp_path / "mask.png", [BLACK, RED])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
def test_images_of_every_mode_read_right(tmp_path: Path, mode: str) -> None:
    image, expected = _modes()[mode]
    image.save(tmp_path / "image.png")
    read = read_image(tmp_path / "image.png")
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, expected)


def test_a_square_is_turned_as_exif_says_since_the_size_of_its_mask_tells_nothing(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[:20] = 200
    Image.fromarray(pixels).save(tmp_path / "square.jpg", exif=exif, quality=95)
    turned = read_image(tmp_path / "square.jpg", stored_size=(40, 40))
    assert turned[20, 35].mean() > 150 > 50 > turned[20, 4].mean()


@pytest.mark.parametrize("stretched", [False, True])
@pytest.mark.parametrize(
    ("image", "mask", "pair"),
    [
        ((100, 100), (100, 109), True),
        ((100, 109), (100, 100), True),
        ((50, 80), (25, 40), True),
        ((50, 80), (80, 50), False),
        ((100, 111), (100, 100), False),
        ((100, 120), (100, 100), False),
        ((120, 100), (100, 100), False),
        ((100, 80), (200, 200), False),
    ],
)
def test_shapes_may_differ_by_a_tenth(image: tuple[int, int], mask: tuple[int, int], pair: bool, stretched: bool):
    """20 % off is no rounding. A stretched copy has square images, so other shapes are judged as ever."""
    arrays = np.zeros((*image, 3), np.uint8), np.zeros(mask, np.uint8)
    if pair:
        assert fit(*arrays, path=Path("a.jpg"), stretched=stretched).shape == (*mask, 3)
        return
    with pytest.raises(DatasetError, match="they do not belong together"):
        fit(*arrays, path=Path("a.jpg"), stretched=stretched)


def test_an_image_is_scaled_to_its_mask_by_blending_its_pixels() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    image[:, 2:] = 200
    rows = fit(image, np.zeros((16, 16), np.uint8), path=Path("a.jpg"))[:, :, 0]
    assert (np.diff(rows.astype(int), axis=1) >= 0).all()
    # Between the centres of the two columns, at 5.5 and 9.5 of 16, levels rise evenly.
    np.testing.assert_array_equal(rows[8, 5:11], [0, 25, 75, 125, 175, 200])
