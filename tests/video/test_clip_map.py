"""From clips to maps and back: the position of every pixel, numbers of frames that fill a rectangle, gradients."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from core.errors import InputError
from video.feature_map import ClipMap, Layout, clip_to_map, map_to_clip, rectangle

SIDES = st.integers(1, 6)


def _place(layout: str, t: int, h: int, w: int, *, size: tuple[int, int], columns: int) -> tuple[int, int]:
    """Return the row and column of pixel (t, h, w) in the map."""
    height, width = size
    if layout == "grid":
        return t // columns * height + h, t % columns * width + w
    flat = t * height * width + h * width + w
    return flat // (columns * width), flat % (columns * width)


@settings(max_examples=60)
@given(st.sampled_from(["grid", "strip"]), SIDES, SIDES, SIDES, SIDES, st.booleans())
def test_every_pixel_is_where_the_formula_says(
    layout: Layout, rows: int, columns: int, height: int, width: int, given_rows: bool
) -> None:
    frames = rows * columns
    try:
        used = (rows, columns) if given_rows else rectangle(frames)
    except InputError:
        assume(False)
    x = torch.arange(2 * frames * 3 * height * width).view(2, frames, 3, height, width)
    maps = clip_to_map(x, layout, rows if given_rows else None)
    assert maps.shape == (2, 3, used[0] * height, used[1] * width)
    for t in range(frames):
        for h in range(height):
            for w in range(width):
                row, column = _place(layout, t, h, w, size=(height, width), columns=used[1])
                assert torch.equal(maps[:, :, row, column], x[:, t, :, h, w])
    assert torch.equal(map_to_clip(maps, frames, layout, rows if given_rows else None), x)


def test_strip_is_the_published_reshape() -> None:
    x_BCTHW = torch.randn(2, 3, 16, 8, 12)
    expected = x_BCTHW.reshape(2, 3, 32, 48)
    assert torch.equal(clip_to_map(x_BCTHW.transpose(1, 2), "strip"), expected)
    frame = expected[0, 0, 2 * 5 : 2 * 6].reshape(8, 12)  # frame 5 fills H / 4 rows
    assert torch.equal(frame, x_BCTHW[0, 0, 5])


def test_grid_lays_frames_in_reading_order() -> None:
    x = torch.arange(16.0).view(1, 16, 1, 1, 1).expand(1, 16, 3, 2, 2)
    expected = torch.arange(16.0).view(4, 4).repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.equal(clip_to_map(x)[0, 1], expected)


@pytest.mark.parametrize("layout", ["grid", "strip"])
def test_gradients_return_to_their_pixels(layout: Layout) -> None:
    x, weight = torch.randn(1, 6, 3, 4, 5, requires_grad=True), torch.randn(1, 3, 8, 15)
    (clip_to_map(x, layout) * weight).sum().backward()
    assert_close(x.grad, map_to_clip(weight, 6, layout))


def test_a_saliency_of_the_map_is_one_of_the_clip() -> None:
    saliency = torch.zeros(1, 1, 8, 8)
    saliency[0, 0, 5, 6] = 1
    clip: Tensor = map_to_clip(saliency, 4)
    assert clip.nonzero().tolist() == [[0, 3, 0, 1, 2]]


@pytest.mark.parametrize(
    ("frames", "expected"),
    [(1, (1, 1)), (2, (1, 2)), (3, (1, 3)), (8, (2, 4)), (12, (3, 4)), (16, (4, 4)), (32, (4, 8))],
)
def test_rectangle_comes_near_to_a_square(frames: int, expected: tuple[int, int]) -> None:
    assert rectangle(frames) == expected


@pytest.mark.parametrize(
    ("frames", "rows", "message"),
    [
        (
            13,
            None,
            r"13 frames fill no rectangle but a single row; give --data\.num_frames 12 or 14, or --model\.rows 1",
        ),
        (16, 3, r"16 frames fill no rectangle of 3 rows; give --model\.rows one of 1, 2, 4, 8, 16"),
        (16, 0, "no rectangle of 0 rows"),
        (0, None, "num_frames=0; a clip has at least one frame"),
    ],
)
def test_frames_that_fill_no_rectangle(frames: int, rows: int | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        rectangle(frames, rows)
    with pytest.raises(InputError, match=message):
        clip_to_map(torch.zeros(1, frames, 3, 2, 2), rows=rows)


@pytest.mark.parametrize("layout", ["grid", "strip"])
def test_clip_map_normalizes_bytes_and_floats_alike(layout: Layout) -> None:
    frames = torch.randint(0, 256, (2, 6, 3, 4, 5), dtype=torch.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 1.0)
    feature_map = ClipMap(mean, std, layout=layout, rows=3)
    maps = feature_map(frames)
    assert maps.dtype == torch.float32
    assert_close(maps, feature_map(frames / 255))
    clips = map_to_clip(maps, 6, layout, rows=3)
    for c in range(3):
        assert_close(clips[:, :, c], (frames[:, :, c] / 255 - mean[c]) / std[c])


def test_statistics_travel_with_the_weights_and_stay_exact() -> None:
    feature_map = ClipMap((0.1, 0.2, 0.3), (0.5, 0.25, 1.0))
    other = ClipMap()
    other.load_state_dict(feature_map.state_dict())
    frames = torch.rand(1, 4, 3, 2, 2)
    assert torch.equal(other(frames), feature_map(frames))
    assert torch.equal(feature_map.to(torch.bfloat16)(frames), other(frames))


def test_other_shapes_and_layouts() -> None:
    with pytest.raises(InputError, match=r"clips have the shape \(16, 3, 8, 8\); expected \(B, T, C, H, W\)"):
        clip_to_map(torch.zeros(16, 3, 8, 8))
    with pytest.raises(InputError, match="a map of 9 x 8 pixels cannot be divided into 2 x 2 frames of one size"):
        map_to_clip(torch.zeros(1, 3, 9, 8), 4)
    for call in (
        lambda: clip_to_map(torch.zeros(1, 4, 3, 2, 2), "rows"),
        lambda: map_to_clip(torch.zeros(1, 3, 4, 4), 4, "a"),
    ):  # type: ignore[arg-type]
        with pytest.raises(InputError, match=r"layout='.*'; expected 'grid' or 'strip'"):
            call()
