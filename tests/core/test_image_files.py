"""Images of every color mode: decoded to 8 bits without losing what they show, or refused."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from core.data.images import Mode, read_image
from core.data.samples import read_or_skip
from core.errors import InputError

RAMP = np.linspace(0, 65535, 48 * 64).reshape(48, 64)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_of_16_bits_the_upper_8_are_kept(suffix: str, mode: Mode, tmp_path: Path) -> None:
    file = tmp_path / f"ramp.{suffix}"
    Image.fromarray(RAMP.astype(np.uint16)).save(file)
    pixels = np.asarray(read_image(file, mode))
    wanted = (RAMP.astype(np.uint16) >> 8).astype(np.uint8)
    assert np.array_equal(pixels if mode == "L" else pixels[..., 0], wanted)
    assert pixels.shape == ((48, 64) if mode == "L" else (48, 64, 3))


@pytest.mark.parametrize(("dtype", "kind"), [(np.int32, "integers"), (np.float32, "floats")])
def test_numbers_of_32_bits_are_refused(dtype: type, kind: str, tmp_path: Path) -> None:
    file = tmp_path / "ramp.tif"
    Image.fromarray(RAMP.astype(dtype)).save(file)
    with pytest.raises(InputError, match=f"32-bit {kind}"):
        read_image(file)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_tiffs_of_16_bits_in_which_zero_is_white(compression: str, tmp_path: Path) -> None:
    file = tmp_path / "a.tif"
    stored = RAMP.astype(np.uint16)
    Image.fromarray(stored).save(file, tiffinfo={262: 0}, compression=compression)
    assert np.array_equal(np.asarray(read_image(file, "L")), (65_535 - stored) >> 8)


def test_pgm_of_16_bits(tmp_path: Path) -> None:
    file = tmp_path / "a.ppm"
    values = RAMP.astype(np.uint16)
    file.write_bytes(b"P5 64 48 65535\n" + values.astype(">u2").tobytes())
    assert np.array_equal(np.asarray(read_image(file, "L")), values >> 8)


def test_lab_images_are_converted(tmp_path: Path) -> None:
    file = tmp_path / "a.tif"
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    lab = ImageCms.applyTransform(Image.new("RGB", (4, 3), (200, 30, 40)), to_lab)
    assert lab is not None
    lab.save(file)

    assert np.abs(np.asarray(read_image(file)).astype(int) - (200, 30, 40)).max() <= 2
    assert np.abs(np.asarray(read_image(file, "L")).astype(int) - 82).max() <= 2


def _text_chunk(size: int) -> bytes:
    """A PNG with a compressed text of so many characters, more than PIL unpacks."""
    stream = BytesIO()
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "a" * size, zip=True)
    Image.new("RGB", (8, 8)).save(stream, "PNG", pnginfo=text)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.ppm", b"P3 4 4 255\n1 2 3 4 5 6\n"),
        ("letters.ppm", b"P3 2 1 255\n1 2 three 4 5 6\n"),
        ("text.png", _text_chunk(2_000_000)),
        ("cut.tif", b"II*\0\x08\0\0\0\x09\0\x12\x01"),
    ],
)
def test_whatever_a_decoder_raises_names_the_file(name: str, content: bytes, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(InputError, match=rf"^{file} cannot be decoded as an image: .*; replace it$"):
        read_image(file)
    with pytest.warns(UserWarning, match=f"skipped: {file} cannot be decoded"):
        assert read_or_skip(lambda: read_image(file), skip_broken=True) is None


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_other_modes_keep_light_and_dark_apart(mode: str, tmp_path: Path) -> None:
    file = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.fromarray((RAMP > 32767).astype(np.uint8) * 255).convert(mode).save(file)
    for wanted in ("L", "RGB"):
        pixels = np.asarray(read_image(file, wanted)).reshape(48, 64, -1)
        assert pixels[:24].mean() < 10
        assert pixels[25:].mean() > 245


def _with_flag(flag: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "a camera", flag
    return exif


CORNER = np.zeros((48, 64), np.uint8)
CORNER[:16, :16] = 255
"""Bright where rows and columns begin."""


@pytest.mark.parametrize(
    ("flag", "shape", "bright"),
    [
        (1, (48, 64), "top left"),
        (2, (48, 64), "top right"),
        (3, (48, 64), "bottom right"),
        (4, (48, 64), "bottom left"),
        (5, (64, 48), "top left"),
        (6, (64, 48), "top right"),
        (7, (64, 48), "bottom right"),
        (8, (64, 48), "bottom left"),
    ],
)
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_images_are_turned_as_their_flag_says(
    flag: int, shape: tuple[int, int], bright: str, suffix: str, tmp_path: Path
) -> None:
    file = tmp_path / f"a.{suffix}"
    Image.fromarray(CORNER).convert("RGB").save(file, exif=_with_flag(flag))
    for mode in ("L", "RGB"):
        image = read_image(file, mode)
        pixels = np.asarray(image).reshape(*shape, -1)
        rows = slice(None, 12) if "top" in bright else slice(-12, None)
        columns = slice(None, 12) if "left" in bright else slice(-12, None)
        assert pixels[rows, columns].mean() > 240
        assert pixels.mean() < 40
        assert np.array_equal(np.asarray(ImageOps.exif_transpose(image)), np.asarray(image))  # and never twice


@pytest.mark.parametrize("mode", ["1", "I;16", "L", "LA", "P", "RGBA", "CMYK"])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_other_modes_are_turned_too(mode: str, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / (f"a.{suffix}" if mode != "CMYK" else "a.tif" if suffix == "tif" else "a.jpg")
    image = Image.fromarray(CORNER.astype(np.uint16) * 257 if mode == "I;16" else CORNER)
    (image if mode == "I;16" else image.convert(mode)).save(file, exif=_with_flag(6))
    pixels = np.asarray(read_image(file, "L"))
    assert pixels.shape == (64, 48)
    assert pixels[:12, -12:].mean() > 240


@pytest.mark.parametrize(
    "content", [b"", b"Exif", b"Exif\0\0II*\0\x08\0\0\0\x09\0\x12\x01", b"Exif\0\0nothing that is known"]
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_flags_that_cannot_be_read_leave_the_image_as_it_is(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    Image.fromarray(CORNER).save(file, exif=content)
    assert read_image(file).size == (64, 48)
