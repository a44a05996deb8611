"""Find and decode image files, and describe what a model must know about its pixels."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from core.data.folders import find_files
from core.data.memory import check_sample_memory
from core.data.spec import DataSpec
from core.errors import InputError, MissingError

__all__ = ["SUFFIXES", "Mode", "PixelSpec", "check_size", "image_files", "read_image", "upright_size"]

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Suffixes of the files that are taken for images, in lower case."""

Mode = Literal["RGB", "L"]
"""'RGB' for three channels, 'L' for one (gray)."""

_MAX_SIZE = 65_535
"""Largest side of a JPEG, in pixels; a larger number is a typing error."""

_FLOAT = 4
"""Bytes of a number in a map."""

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""The only decoders that PIL may use. It chooses by content, and would have Ghostscript execute a PostScript file."""

_BITS_PER_SAMPLE = 258
"""Number of the TIFF tag that holds the number of bits of each channel."""

_TURNED = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""

_PHOTOMETRIC = 262
"""Number of the TIFF tag that says what the values mean; 0 means that the value 0 is white."""


@dataclass(frozen=True)
class PixelSpec(DataSpec):
    """What a model must know about the pixels of its images or video frames.

    Attributes:
        size: side of an image or frame, in pixels.
        mode: 'RGB' or 'L'.
        mean: mean of each channel, for pixels in [0, 1].
        std: standard deviation of each channel, for pixels in [0, 1].
    """

    size: int = 224
    mode: Mode = "RGB"
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD


def check_size(size: int) -> None:
    """Raise an InputError if the side of an image, in pixels, is out of range, or its map does not fit into memory."""
    if not 1 <= size <= _MAX_SIZE:
        raise InputError(f"size={size}; expected a number of pixels, 1 to {_MAX_SIZE:,}")
    check_sample_memory(3 * size**2 * _FLOAT, f"size={size}")


def image_files(path: Path) -> list[Path]:
    """Find all images below a folder, sorted; a path to an image gives that image alone.

    Raises:
        MissingError: if there is no image.
        InputError: if the user may not read a folder.
    """
    return find_files(path, SUFFIXES, "images")


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return (width, height) of an opened image after its EXIF rotation; its pixels are not decoded."""
    width, height = image.size
    is_turned = image.getexif().get(ExifTags.Base.Orientation) in _TURNED
    return (height, width) if is_turned else (width, height)


def read_image(path: Path, mode: Mode = "RGB") -> Image.Image:
    """Decode an image to 8 bits in mode 'RGB' or 'L' (gray). Of 12-bit and 16-bit values, the upper 8 bits are kept.

    The image is rotated by its EXIF orientation. The readers of Hugging Face, mmcv and OpenCV do the same; those of
    torchvision and timm do not.

    Raises:
        MissingError: if there is no such file.
        InputError: if the file cannot be decoded, or its values have an unknown range; the message names the file.
    """
    if not path.is_file():
        raise MissingError(f"there is no image {path}; correct the list that names it")
    try:
        with Image.open(path, formats=_FORMATS) as image:
            # With a file name, PIL memory-maps the file, which scrambles gray TIFFs that have an orientation flag.
            image.filename = ""
            pixels = _to_8_bits(image, path)
            if pixels.mode == "LAB":
                pixels = pixels.convert("RGB")  # PIL cannot convert LAB to gray directly
            return _apply_orientation(pixels.convert(mode), image)
    except InputError:
        raise
    except Exception as error:  # PIL's decoders raise errors of any type
        raise InputError(f"{path} cannot be decoded as an image: {error}; replace it") from error


def _to_8_bits(image: Image.Image, path: Path) -> Image.Image:
    """Reduce 16-bit values to 8 bits. PIL itself would clip them at 255, which turns most of the image white."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image

    # PIL reads a PNG or PPM of 16 bits as mode I; in other formats this mode stands for 32 bits.
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        kind = "integers" if image.mode == "I" else "floats"
        raise InputError(
            f"{path} holds 32-bit {kind} in an unknown range; expected 8 or 16 bits. Convert all images in the same way"
        )

    # A TIFF of 12 bits has mode I;16 too. If 0 is white, PIL inverts TIFFs of 8 bits, but not those of more bits.
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    upper_bits = (np.asarray(image).astype(np.uint32) >> (bits - 8)).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == 0:
        upper_bits = 255 - upper_bits

    return Image.fromarray(upper_bits)


def _apply_orientation(pixels: Image.Image, image: Image.Image) -> Image.Image:
    """Rotate or flip decoded pixels by the EXIF orientation of their image."""
    try:
        flag = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF data raises errors of any type, and the pixels are still good
        flag = 1
    if flag == 1:
        return pixels

    # exif_transpose writes all other EXIF data back, damaged entries too, so keep the orientation alone.
    pixels.info.clear()
    pixels.getexif()[ExifTags.Base.Orientation] = flag
    return ImageOps.exif_transpose(pixels)
