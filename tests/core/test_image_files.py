"""Images of every colour mode: decoded to 8 bits without losing what they show, or refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.errors import InputError
from core.images import Mode, read_image

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


@pytest.mark.parametrize(("dtype", "kind"), [(np.int32, "whole"), (np.float32, "real")])
def test_numbers_of_32_bits_are_refused(dtype: type, kind: str, tmp_path: Path) -> None:
    file = tmp_path / "ramp.tif"
    Image.fromarray(RAMP.astype(dtype)).save(file)
    with pytest.raises(InputError, match=f"{kind} numbers of 32 bits"):
        read_image(file)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_other_modes_keep_light_and_dark_apart(mode: str, tmp_path: Path) -> None:
    file = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.fromarray((RAMP > 32767).astype(np.uint8) * 255).convert(mode).save(file)
    for wanted in ("L", "RGB"):
        pixels = np.asarray(read_image(file, wanted)).reshape(48, 64, -1)
        assert pixels[:24].mean() < 10
        assert pixels[25:].mean() > 245
