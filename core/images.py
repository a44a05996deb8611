"""Image files: found below a folder, decoded, and named when they are broken."""

from pathlib import Path
from typing import Literal

from PIL import Image, UnidentifiedImageError

from core.errors import InputError
from core.files import find_files

__all__ = ["SUFFIXES", "Mode", "image_files", "read_image"]

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
Mode = Literal["RGB", "L"]


def image_files(path: Path) -> list[Path]:
    """The image itself, or all images below a folder, sorted.

    Raises:
        MissingError: if there is none.
    """
    return find_files(path, SUFFIXES, "images")


def read_image(path: Path, mode: Mode = "RGB") -> Image.Image:
    """The decoded image, 'RGB' or 'L' (grey).

    Raises:
        InputError: naming the file that cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            return image.convert(mode)
    except (OSError, UnidentifiedImageError, SyntaxError) as error:  # what PIL raises for damaged files
        raise InputError(f"{path} cannot be decoded as an image: {error}; replace it") from error
