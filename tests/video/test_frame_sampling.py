"""Which frames a clip has: the published rules, uniform segments, and videos with a variable frame rate."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import InputError
from video.sampling import Sampling, displayed_frames

FRAMES, RATES, LENGTHS = st.integers(1, 20), st.integers(1, 6), st.integers(2, 400)


def _published(length: int, frames: int, rate: int, end: int) -> list[int]:
    """Return the indices of a window that ends at ``end``, by the rule of the released code."""
    if length <= frames * rate:
        spread = [i * length / (length // rate - 1) if length // rate > 1 else 0.0 for i in range(length // rate)]
        return [int(min(max(index, 0), length - 1)) for index in spread + [length] * (frames - len(spread))]
    start = end - frames * rate
    step = (end - start) / (frames - 1) if frames > 1 else 0.0
    return [int(min(max(start + i * step, start), end - 1)) for i in range(frames)]


@settings(max_examples=100)
@given(FRAMES, RATES, LENGTHS)
def test_center_of_dense_sampling(frames: int, rate: int, length: int) -> None:
    expected = _published(length, frames, rate, (frames * rate + length) // 2)
    assert Sampling(frames, rate).center(length).tolist() == expected


@settings(max_examples=60)
@given(FRAMES, RATES, LENGTHS, st.integers(0, 2**31))
def test_random_dense_clips_are_windows(frames: int, rate: int, length: int, seed: int) -> None:
    np.random.seed(seed)
    indices = Sampling(frames, rate).random(length).tolist()
    ends = range(frames * rate, length) if length > frames * rate else [length]
    assert indices in [_published(length, frames, rate, end) for end in ends]


def test_random_windows_reach_both_ends() -> None:
    drawn = [Sampling(4, 2).random(12).tolist() for _ in range(200)]
    assert {tuple(indices) for indices in drawn} == {tuple(_published(12, 4, 2, end)) for end in range(8, 12)}


@pytest.mark.parametrize("length", [2, 3, 5, 40, 64, 65, 75, 300])
def test_test_views_are_the_published_ones(length: int) -> None:
    every_fourth = list(range(0, length, 4))
    every_fourth += [every_fourth[-1]] * (16 - len(every_fourth))
    step = max((len(every_fourth) - 16) / 4, 0)
    expected = [every_fourth[int(v * step) : int(v * step) + 16] for v in range(5)]
    assert Sampling().views(length, 5).tolist() == expected


@settings(max_examples=60)
@given(FRAMES, LENGTHS, st.integers(1, 6))
def test_uniform_clips_have_one_index_of_each_segment(frames: int, length: int, views: int) -> None:
    sampling = Sampling(frames, mode="uniform")
    edges = [i * length / frames for i in range(frames + 1)]
    clips = [sampling.random(length), sampling.center(length), *sampling.views(length, views)]
    for indices in clips:
        for index, low, high in zip(indices, edges, edges[1:], strict=False):
            assert int(low) <= index <= high
    assert sampling.center(length).tolist() == [int((i + 0.5) * length / frames) for i in range(frames)]
    assert np.array_equal(sampling.views(length, 1)[0], sampling.center(length))


def test_uniform_views_lie_evenly_in_each_segment() -> None:
    found = Sampling(3, mode="uniform").views(24, 4)  # segments of 8 indices, in the middle of each quarter
    assert found.tolist() == [[1, 9, 17], [3, 11, 19], [5, 13, 21], [7, 15, 23]]


@settings(max_examples=60)
@given(FRAMES, RATES, st.integers(1, 30), st.integers(1, 5), st.sampled_from(["dense", "uniform"]))
def test_indices_are_ascending_and_inside_of_any_video(
    frames: int, rate: int, length: int, views: int, mode: Any
) -> None:
    sampling = Sampling(frames, rate, mode)
    for indices in [sampling.random(length), sampling.center(length), *sampling.views(length, views)]:
        assert indices.shape == (frames,)
        assert 0 <= indices.min() <= indices.max() < length
        assert (np.diff(indices) >= 0).all()


@settings(max_examples=50)
@given(st.integers(2, 300), st.floats(0.01, 50), st.floats(0, 0.2))
def test_at_a_constant_rate_indices_are_frames(count: int, duration: float, jitter: float) -> None:
    wobble = np.random.default_rng(count).uniform(-jitter, jitter, count)
    wobble[0] = 0
    start = (np.arange(count) + wobble) * duration
    assert displayed_frames(start, count * duration, np.arange(count)).tolist() == list(range(count))


def test_at_a_variable_rate_a_frame_counts_as_long_as_it_is_shown() -> None:
    start = np.array([0.0, 1, 2, 3, 7])  # the fourth for four seconds, the last for one
    assert displayed_frames(start, 8.0, np.arange(5)).tolist() == [0, 2, 3, 3, 4]


@pytest.mark.parametrize("options", [{"frames": 0}, {"rate": 0}, {"mode": "sparse"}])
def test_sampling_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"num_frames=.*expected at least 1, at least 1, and 'dense' or 'uniform'"):
        Sampling(**options)
