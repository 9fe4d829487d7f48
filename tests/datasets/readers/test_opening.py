"""What a file is called is not evidence of what it is."""

from __future__ import annotations

import os
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from harness.datasets import samples as encodings
from harness.datasets.base import AWAY, DatasetError
from harness.datasets.readers.decoding import read_binary, read_image
from harness.datasets.readers.opening import open_image, orientation, stored_size, upright
from tests.datasets.conftest import MakeBenchmark

RNG = np.random.default_rng(0)


def refused(path: Path) -> str:
    with pytest.raises(DatasetError) as raised:
        read_image(path)
    message = str(raised.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def test_postscript_named_as_an_image_never_reaches_ghostscript(tmp_path: Path, monkeypatch) -> None:
    def forbidden(*arguments: object, **options: object) -> None:
        raise AssertionError(f"a program was started: {arguments}")

    monkeypatch.setattr(subprocess, "check_call", forbidden)
    monkeypatch.setattr(subprocess, "Popen", forbidden)
    path = tmp_path / "a.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\nshowpage\n%%EOF\n")
    Image.init()
    assert Image.open(path).format == "EPS", "or this shows nothing"
    assert "not JPEG, PNG, TIFF, BMP, WEBP" in refused(path)


@pytest.mark.parametrize("kind", ["GIF", "PPM", "ICO", "PCX", "TGA", "SGI"])
def test_formats_that_no_benchmark_has_are_refused_whatever_the_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (32, 32)).save(path, format=kind)
    assert "unreadable" in refused(path)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".bmp", ".webp"])
def test_formats_of_benchmarks_are_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    Image.new("RGB", (40, 30), (200, 100, 50)).save(path)
    assert np.abs(read_image(path).astype(int) - (200, 100, 50)).max() < 8
    assert stored_size(path) == (40, 30)


def test_several_jpegs_in_one_file_are_read_and_lossy(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.new("L", (40, 30), 255).save(path, format="MPO", save_all=True, append_images=[Image.new("L", (40, 30))])
    assert open_image(path).format == "MPO"
    assert read_binary(path).all()


def test_folders_pipes_broken_links_and_broken_files_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    os.mkfifo(tmp_path / "b.png")
    (tmp_path / "c.png").symlink_to(tmp_path / "nowhere")
    assert "is a folder" in refused(tmp_path / "a.png")
    assert "is a pipe" in refused(tmp_path / "b.png")
    assert "is missing" in refused(tmp_path / "c.png")
    (tmp_path / "d.png").touch()
    assert "is empty" in refused(tmp_path / "d.png")
    Image.fromarray(RNG.integers(0, 255, size=(64, 64, 3), dtype=np.uint8)).save(path := tmp_path / "e.png")
    path.write_bytes(path.read_bytes()[:3000])
    assert "is unreadable" in refused(path)
    (tmp_path / "f.tif").write_bytes(b"II*\0" + bytes(50))
    assert "is unreadable" in refused(tmp_path / "f.tif")
    assert "is unreadable" in refused(tmp_path / ("x" * 300))


def test_an_error_without_words_is_told_by_its_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wordless(*arguments: object, **options: object) -> None:
        raise ValueError

    Image.new("L", (40, 30)).save(path := tmp_path / "a.png")
    monkeypatch.setattr(Image, "open", wordless)
    assert "unreadable (ValueError)" in refused(path)


def test_huge_images_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("1", (13_000, 12_000)).save(path)  # Pillow itself would read so many
    assert "13000x12000 pixels; over 150 million are refused" in refused(path)


def test_rgb_that_calls_itself_grey_is_read_exactly(tmp_path: Path) -> None:
    image = RNG.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    path = tmp_path / "a.tif"
    encodings.mislabelled_tiff(path, image)
    with pytest.raises(OSError, match="cannot identify"):
        Image.open(path)  # or this shows nothing
    np.testing.assert_array_equal(read_image(path), image)
    assert stored_size(path) == (40, 30)
    assert open_image(path).format == "TIFF"


# --- 16 bits


def save_grey16(path: Path, values: np.ndarray) -> Path:
    Image.fromarray(values.astype(np.uint16)).save(path)
    return path


def save_rgb16(path: Path, values: np.ndarray) -> Path:
    """A PNG of 16-bit colours, which Pillow cannot write."""
    height, width, _ = values.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_fewer_bits_in_sixteen_are_one_line_not_a_dark_picture(tmp_path: Path, bits: int) -> None:
    values = RNG.integers(0, 1 << bits, (30, 40, 3))
    grey, colour = save_grey16(tmp_path / "a.png", values[..., 0]), save_rgb16(tmp_path / "b.png", values)
    for path in (grey, colour):
        assert "14 bits or less" in refused(path)
    with pytest.raises(DatasetError, match="14 bits or less"):
        read_binary(save_grey16(tmp_path / "mask.png", (values[..., 0] > 500) * ((1 << bits) - 1)))


@pytest.mark.parametrize("values", [[0, 65536], [0, 3_000_000_000], [-1, 65535]])
def test_samples_outside_of_sixteen_bits_are_one_line_not_a_white_picture(tmp_path: Path, values: list[int]) -> None:
    kind = np.uint32 if max(values) >= 1 << 31 else np.int32
    tifffile.imwrite(tmp_path / "a.tif", np.array([values] * 8, dtype=kind))
    assert "16 bits" in refused(tmp_path / "a.tif")
    with pytest.raises(DatasetError, match="16 bits"):
        read_binary(tmp_path / "a.tif")


def test_sixteen_bits_are_scaled_and_eight_in_a_wider_file_stay_what_they_are(tmp_path: Path) -> None:
    levels = np.array([[0, 257, 32767, 32768, 65535]])
    for path in (
        save_grey16(tmp_path / "a.png", levels),
        save_rgb16(tmp_path / "b.png", np.repeat(levels[..., None], 3, axis=2)),
    ):
        assert read_image(path)[0, :, 0].tolist() == [0, 1, 127, 128, 255]
    for eight, expected in (([0, 1, 128, 255], [0, 1, 128, 255]), ([0, 16384], [0, 64])):
        assert read_image(save_grey16(tmp_path / "a.png", np.array([eight])))[0, :, 0].tolist() == expected
    assert "end at 256" in refused(save_grey16(tmp_path / "b.png", np.array([[0, 256]])))


@pytest.mark.parametrize(("level", "foreground"), [(127, False), (128, True), (129, True)])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_grey_masks_are_split_above_127(tmp_path: Path, level: int, foreground: bool, suffix: str) -> None:
    values = np.zeros((400, 400), np.uint8)
    values[:80] = 255
    values[200:208, 200:208] = level  # aligned with JPEG's blocks, which keep one flat level as it is
    path = tmp_path / f"a{suffix}"
    Image.fromarray(values).save(path, quality=100)  # which PNG ignores
    if suffix == ".jpg":
        assert np.asarray(Image.open(path))[204, 204] == level, "or this shows nothing"
    assert bool(read_binary(path)[204, 204]) is foreground


SPLIT: list[tuple[dict[str, bool], int, int]] = [({}, 65535, 32768), ({"only_255": True}, 255, 255)]


@pytest.mark.parametrize(("options", "white", "lowest"), SPLIT)
def test_sixteen_bit_masks_are_split_at_half_and_the_quirk_takes_255_alone(tmp_path, options, white, lowest) -> None:
    levels = np.array([0, lowest - 1, lowest, white])
    values = np.zeros((40, 40), np.uint16)
    values[:20], values[0, :4] = white, levels
    Image.fromarray(values.astype(np.uint8) if white == 255 else values).save(tmp_path / "a.png")
    assert read_binary(tmp_path / "a.png", **options)[0, :4].tolist() == [0, 0, 1, 1]


# --- real files


def test_original_cvc_frames_equal_their_png_copies(make: MakeBenchmark, real_data: Path) -> None:
    cvc = make("cvc612")
    root = cvc.locate(real_data / "cvc612_original_tiff")
    splits = cvc.splits(root)
    assert splits.layout == "original"
    assert splits.note == "3 of 612"
    copies = real_data / "CVC-ClinicDB" / "PNG"
    for pair in (*splits.train, *splits.val, *splits.test["test"]):
        sample = cvc.read(pair)
        np.testing.assert_array_equal(sample.image, np.asarray(Image.open(copies / "Original" / f"{pair.stem}.png")))
        np.testing.assert_array_equal(sample.mask, read_binary(copies / "Ground Truth" / f"{pair.stem}.png"))


@pytest.mark.parametrize("number", sorted(AWAY))
@pytest.mark.parametrize("at", ["PIL.Image.open", "PIL.ImageFile.ImageFile.load"])
def test_a_file_server_that_is_away_is_not_taken_for_a_damaged_file(
    tmp_path: Path, monkeypatch, number: int, at: str
) -> None:
    """A record of code NO_DATA would be final; the run is to restart instead."""
    path = tmp_path / "a.png"
    Image.fromarray(RNG.integers(0, 255, size=(8, 8, 3), dtype=np.uint8)).save(path)

    def away(*arguments: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(at, away)
    with pytest.raises(OSError, match=os.strerror(number)) as raised:
        read_image(path)
    assert (raised.value.errno, raised.value.filename) == (number, str(path))


@pytest.mark.parametrize(("stored", "read"), [*((value, value) for value in range(1, 9)), (0, 1), (9, 1)])
def test_all_eight_orientations_are_known_and_no_other(tmp_path: Path, stored: int, read: int) -> None:
    exif = Image.Exif()
    exif[274] = stored
    Image.fromarray(RNG.integers(0, 255, size=(4, 6, 3), dtype=np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    image = open_image(tmp_path / "a.jpg")
    assert orientation(image) == read
    assert upright(image).size == ((4, 6) if read >= 5 else (6, 4))
    np.testing.assert_array_equal(np.asarray(upright(image)), np.asarray(ImageOps.exif_transpose(image)))


def test_an_image_is_turned_whatever_else_its_exif_block_holds(tmp_path: Path) -> None:
    fields = struct.pack("<HHIHxx", 274, 3, 1, 6) + struct.pack(
        "<HHII", 305, 5, 1, 38
    )  # the software's name as a fraction
    block = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + fields + struct.pack("<III", 0, 1, 2)
    Image.new("RGB", (6, 4)).save(tmp_path / "a.jpg", exif=block)
    assert read_image(tmp_path / "a.jpg").shape == (6, 4, 3)
    Image.new("RGB", (6, 4)).save(tmp_path / "b.jpg", exif=b"Exif\0\0XX*\0" + bytes(8))
    assert read_image(tmp_path / "b.jpg").shape == (4, 6, 3)


def test_a_file_with_too_many_pixels_is_to_be_scaled_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "slide.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DatasetError, match=r"is refused .*; scale it down"):
        open_image(tmp_path / "slide.png")
