"""Files to arrays, exactly, whatever the encoding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.datasets.base import DatasetError
from harness.datasets.reading.decoding import fit, read_binary, read_channel_means, read_image, read_indices
from harness.datasets.samples import encodings

RNG = np.random.default_rng(0)


@pytest.fixture
def disc() -> np.ndarray:
    rows, columns = np.mgrid[:45, :61]
    return (((rows - 22) ** 2 + (columns - 30) ** 2) < 200).astype(np.uint8)


@pytest.mark.parametrize(
    ("encode", "suffix"),
    [
        (encodings.grey, ".png"),
        (encodings.grey, ".tif"),
        (encodings.grey_low_peak, ".png"),
        (encodings.three_channels, ".tif"),
        (encodings.one_bit, ".png"),
        (encodings.palette_png, ".png"),
        (encodings.index, ".png"),
    ],
)
def test_lossless_binary_masks_decode_exactly(tmp_path: Path, disc: np.ndarray, encode, suffix: str) -> None:
    path = tmp_path / f"mask{suffix}"
    encode(path, disc)
    np.testing.assert_array_equal(read_binary(path), disc)


def test_jpeg_mask_does_not_erode(tmp_path: Path, disc: np.ndarray) -> None:
    path = tmp_path / "mask.jpg"
    encodings.jpeg_noise(path, disc)
    stored = np.asarray(Image.open(path))
    assert (stored == 255).sum() < disc.sum(), "the file must hold noise, or this test shows nothing"
    np.testing.assert_array_equal(read_binary(path), disc)


def test_palette_that_lists_white_before_black_keeps_its_polarity(tmp_path: Path, disc: np.ndarray) -> None:
    image = Image.fromarray(1 - disc)
    image.putpalette([255, 255, 255, 0, 0, 0])
    image.save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_binary(tmp_path / "mask.png"), disc)


def test_grey_palette_with_soft_edges_is_thresholded_as_grey_levels(tmp_path: Path) -> None:
    levels = np.tile(np.repeat(np.array([0, 90, 200, 255], np.uint8), [100, 1, 1, 100]), (50, 1))
    image = Image.fromarray(levels)
    image.putpalette([value for level in range(256) for value in (level,) * 3])
    image.save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_binary(tmp_path / "mask.png"), (levels > 127).astype(np.uint8))


def test_sixteen_bit_mask(tmp_path: Path, disc: np.ndarray) -> None:
    Image.fromarray(disc.astype(np.uint16) * 65535).save(tmp_path / "full.png")
    Image.fromarray(disc.astype(np.uint16) * 255).save(tmp_path / "narrow.png")
    np.testing.assert_array_equal(read_binary(tmp_path / "full.png"), disc)
    np.testing.assert_array_equal(read_binary(tmp_path / "narrow.png"), disc)


def test_mask_in_the_alpha_channel(tmp_path: Path, disc: np.ndarray) -> None:
    pixels = np.zeros((*disc.shape, 4), np.uint8)
    pixels[..., 3] = disc * 255
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_binary(tmp_path / "mask.png"), disc)


def test_alpha_of_no_opacity_is_an_empty_mask_beside_masks_drawn_in_alpha(tmp_path: Path, disc: np.ndarray) -> None:
    for colour, name in ((255, "a.png"), (0, "b.png")):
        pixels = np.full((*disc.shape, 4), colour, np.uint8)
        pixels[..., 3] = 0
        Image.fromarray(pixels).save(tmp_path / name)
        assert not read_binary(tmp_path / name).any()
    grey = np.dstack([np.full_like(disc, 255), disc * 255]).astype(np.uint8)
    Image.fromarray(grey, mode="LA").save(tmp_path / "c.png")
    np.testing.assert_array_equal(read_binary(tmp_path / "c.png"), disc)


def test_a_palette_of_two_colours_has_black_for_background(tmp_path: Path, disc: np.ndarray) -> None:
    image = Image.fromarray(disc.astype(np.uint8))
    image.putpalette([68, 1, 84, 253, 231, 37])
    image.save(tmp_path / "a.png")
    with pytest.raises(DatasetError, match="two colours and neither is black"):
        read_binary(tmp_path / "a.png")


def test_an_image_of_floats_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DatasetError, match=r"a\.tif holds floats; convert it to 8 bits"):
        read_image(tmp_path / "a.tif")


def test_empty_mask_stays_empty_and_full_mask_full(tmp_path: Path) -> None:
    for value in (0, 1):
        classes = np.full((20, 30), value, np.uint8)
        for encode, name in (
            (encodings.grey, "a.png"),
            (encodings.jpeg_noise, "b.jpg"),
            (encodings.palette_png, "c.png"),
        ):
            encode(tmp_path / name, classes)
            np.testing.assert_array_equal(read_binary(tmp_path / name), classes)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.repeat(np.array([[0, 128, 255]], np.uint8), 30, axis=0).repeat(20, axis=1), "0, 128, 255"),
        (np.repeat(np.array([[0, 38]], np.uint8), 30, axis=0).repeat(20, axis=1), "0, 38"),
        (np.tile(np.arange(256, dtype=np.uint8), (40, 1)), "256 values"),
    ],
)
def test_unexpected_binary_values_are_an_error_that_names_file_and_values(tmp_path: Path, values, words: str) -> None:
    path = tmp_path / "mask_7.png"
    Image.fromarray(values).save(path)
    with pytest.raises(DatasetError, match=r"mask_7\.png") as caught:
        read_binary(path)
    assert words in str(caught.value)


def test_index_mask_with_an_index_that_is_no_class_is_an_error(tmp_path: Path, disc: np.ndarray) -> None:
    image = Image.fromarray(2 * disc)
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    image.save(tmp_path / "a.png")
    with pytest.raises(DatasetError, match=r"a\.png has the unexpected mask values 0, 2: palette indices are 0 and 1"):
        read_binary(tmp_path / "a.png", rule="index")


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
    found = read_binary(tmp_path / "mask.png", colour=(128, 0, 0))
    assert (found[0] == (np.arange(129) > 63)).all()
    assert not read_binary(tmp_path / "mask.png", colour=(128, 0, 0), only_255=True).any()


def test_two_colours_are_no_mask_of_one(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[0], pixels[1] = (128, 0, 0), (0, 128, 0)
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    for colour in ("any", (128, 0, 0)):
        with pytest.raises(DatasetError, match="several colours"):
            read_binary(tmp_path / "mask.png", colour=colour)
    with pytest.raises(DatasetError, match="colour image"):
        read_binary(tmp_path / "mask.png")


def test_palette_mask_with_a_third_colour_is_an_error(tmp_path: Path) -> None:
    image = Image.fromarray(np.repeat(np.array([[0, 1, 2]], np.uint8), 9, axis=0))
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    image.save(tmp_path / "mask.png")
    with pytest.raises(DatasetError, match="0, 1, 2"):
        read_binary(tmp_path / "mask.png")


def test_index_rule_reads_the_grey_view_and_refuses_a_third_value(tmp_path: Path, disc: np.ndarray) -> None:
    Image.fromarray(disc * np.uint8(38)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_binary(tmp_path / "a.png", rule="index"), disc)
    Image.fromarray(disc * np.uint8(38) + np.eye(*disc.shape, dtype=np.uint8)).save(tmp_path / "b.png")
    with pytest.raises(DatasetError, match="unexpected mask values"):
        read_binary(tmp_path / "b.png", rule="index")


def test_nonzero_rule_counts_dark_foreground(tmp_path: Path, disc: np.ndarray) -> None:
    Image.fromarray(disc * np.uint8(9)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_binary(tmp_path / "a.png", rule="nonzero"), disc)


def test_class_indices_exact_and_checked(tmp_path: Path) -> None:
    classes = RNG.integers(0, 12, size=(33, 21), dtype=np.uint8)
    encodings.index(tmp_path / "a.png", classes)
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
        "I;16": (Image.fromarray(grey.astype(np.uint16) * 257), repeated),
    }


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16"])
def test_images_of_every_mode_read_right(tmp_path: Path, mode: str) -> None:
    image, expected = _modes()[mode]
    image.save(tmp_path / "image.png")
    read = read_image(tmp_path / "image.png")
    assert read.dtype == np.uint8
    if mode == "I;16":
        assert read.min() < 10, "scaled, not clipped"
    np.testing.assert_array_equal(read, expected)


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:10] = 200
    exif = Image.Exif()
    exif[274] = 6  # stored lying on its side: to be turned clockwise
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
    turned = read_image(tmp_path / "a.jpg")
    assert turned.shape == (40, 20, 3)
    assert turned[20, 15].mean() > 150 > 50 > turned[20, 4].mean()


def test_exif_rotation_is_left_alone_where_the_mask_was_drawn_on_the_stored_pixels(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.zeros((20, 40, 3), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg", stored_size=(40, 20)).shape == (20, 40, 3)
    assert read_image(tmp_path / "a.jpg", stored_size=(20, 40)).shape == (40, 20, 3)


def test_broken_exif_block_does_not_stop_reading(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(
        tmp_path / "a.jpg", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff"
    )
    assert read_image(tmp_path / "a.jpg").shape == (8, 8, 3)


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_unreadable_file_is_one_line_that_names_it(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "broken.png"
    if content is None:
        Image.fromarray(RNG.integers(0, 255, size=(64, 64, 3), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:3000])
    else:
        path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"broken\.png is unreadable") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


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
    with pytest.raises(DatasetError, match="these are no pair"):
        fit(*arrays, path=Path("a.jpg"), stretched=stretched)


def test_square_images_of_a_stretched_copy_fit_any_mask() -> None:
    arrays = np.zeros((50, 50, 3), np.uint8), np.zeros((30, 80), np.uint8)
    assert fit(*arrays, path=Path("a.jpg"), stretched=True).shape == (30, 80, 3)
    with pytest.raises(DatasetError, match="these are no pair"):
        fit(*arrays, path=Path("a.jpg"))
