"""Images: files found below a folder, decoded, named when they are broken, and what a model must know of its pixels."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from core.data.folders import find_files
from core.data.spec import DataSpec
from core.errors import InputError, MissingError

__all__ = ["SUFFIXES", "Mode", "PixelSpec", "image_files", "read_image"]

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
Mode = Literal["RGB", "L"]
"""'RGB' for three channels, 'L' for one (gray)."""

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Decoders that may be tried: PIL goes by the content, and would hand PostScript to Ghostscript, which runs it."""


@dataclass(frozen=True)
class PixelSpec(DataSpec):
    """What a model must know of pixels, of images or of the frames of videos.

    Attributes:
        size: side of an image or frame, in pixels.
        mode: 'RGB' or 'L'.
        mean: of each channel, for pixels in [0, 1].
        std: standard deviation of each channel, for pixels in [0, 1].
    """

    size: int = 224
    mode: Mode = "RGB"
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD


def image_files(path: Path) -> list[Path]:
    """The image itself, or all images below a folder, sorted.

    Raises:
        MissingError: if there is none.
        InputError: if a folder may not be read.
    """
    return find_files(path, SUFFIXES, "images")


def read_image(path: Path, mode: Mode = "RGB") -> Image.Image:
    """The decoded image, 'RGB' or 'L' (gray), of 8 bits; of an image of 16 bits the upper 8.

    It is turned as its EXIF flag says, which Hugging Face's, mmcv's and OpenCV's readers do too, torchvision's and
    timm's do not.

    Raises:
        MissingError: if there is no such file.
        InputError: naming the file that cannot be decoded, or whose numbers have no known range.
    """
    if not path.is_file():
        raise MissingError(f"there is no image {path}; correct the list that names it")
    try:
        with Image.open(path, formats=_FORMATS) as image:
            image.filename = ""  # else PIL maps the file, and scrambles a gray TIFF that lies on its side
            return _upright(_of_8_bits(image, path).convert(mode), image)
    except (OSError, UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be decoded as an image: {error}; replace it") from error


def _of_8_bits(image: Image.Image, path: Path) -> Image.Image:
    """PIL itself would cut larger numbers off at 255, which makes most of the image white."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    if image.mode in ("I", "F") and image.format != "PNG":  # PIL has read 16 bits of a PNG as mode I
        raise InputError(
            f"{path} holds {'whole' if image.mode == 'I' else 'real'} numbers of 32 bits, whose range nothing says; "
            "expected 8 or 16 bits. Convert all images alike"
        )
    return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))


def _upright(pixels: Image.Image, image: Image.Image) -> Image.Image:
    """The pixels of a decoded image turned by its flag; a camera on its side writes one instead of turning them."""
    try:
        flag = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # of any type, where the flag is damaged; the pixels are not
        flag = 1
    if flag == 1:
        return pixels
    pixels.info.clear()  # PIL would write back all that the camera says, also what is broken
    pixels.getexif()[ExifTags.Base.Orientation] = flag
    return ImageOps.exif_transpose(pixels)
