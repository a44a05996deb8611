"""Farthest points and nearest neighbors against the textbook algorithms, index by index, on clouds of many kinds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from core.errors import InputError
from pointcloud import PointViews
from pointcloud.sampling import LazySampler, farthest_points, nearest_neighbors, take


def _textbook(cloud: Tensor, count: int) -> list[int]:
    distance = torch.full((len(cloud),), torch.inf)
    chosen = [0]
    while len(chosen) < count:
        d = (cloud - cloud[chosen[-1]]) ** 2
        distance = torch.minimum(distance, (d[:, 0] + d[:, 1]) + d[:, 2])
        chosen.append(int((distance == distance.max()).nonzero()[0]))  # of equals the first
    return chosen


def _cloud(kind: str, count: int) -> Tensor:
    cloud = torch.randn(count, 3)
    if kind == "grid":
        cloud = torch.randint(0, 5, (count, 3)).float()
    elif kind == "line":
        cloud[:, 1:] = 0
    elif kind == "plane":
        cloud[:, 2] = 1.5
    elif kind == "equal":
        cloud[:] = 0.3
    elif kind == "clusters":
        cloud = 0.01 * cloud + torch.randint(0, 2, (count, 3))
    return cloud


KINDS = ["noise", "grid", "line", "plane", "equal", "clusters"]


@settings(max_examples=40)
@given(st.sampled_from(KINDS), st.integers(2, 700), st.integers(1, 700), st.integers(0, 10**6))
def test_lazy_sampling_equals_the_textbook(kind: str, total: int, count: int, seed: int) -> None:
    torch.manual_seed(seed)
    count = min(count, total)
    clouds = torch.stack([_cloud(kind, total), _cloud("noise", total)])
    assert LazySampler(clouds).sample(count).tolist() == [_textbook(cloud, count) for cloud in clouds]


@pytest.mark.parametrize("total", [40, 1_500])
def test_large_and_small_clouds_equal_the_textbook(total: int) -> None:
    clouds = torch.stack([_cloud(kind, total) for kind in KINDS])
    before = clouds.clone()
    found = farthest_points(clouds, 40)
    assert found.tolist() == [_textbook(cloud, 40) for cloud in clouds]
    assert torch.equal(clouds, before)
    assert farthest_points(clouds.double(), 40).tolist() == found.tolist()


def test_all_points_are_taken_once() -> None:
    found = farthest_points(_cloud("noise", 1_300)[None], 1_300)
    assert sorted(found[0].tolist()) == list(range(1_300))


def test_sampling_leaves_the_number_of_threads_alone() -> None:
    torch.set_num_threads(2)
    farthest_points(torch.randn(1, 1_100, 3), 5)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("count", [0, 11, -1])
def test_fewer_points_than_asked(count: int) -> None:
    with pytest.raises(InputError, match=rf"cannot sample {count} points from clouds of 10; expected 1 to 10"):
        farthest_points(torch.randn(1, 10, 3), count)
    with pytest.raises(InputError, match=rf"cannot find {count} neighbors in clouds of 10 points; expected 1 to 10"):
        nearest_neighbors(torch.randn(1, 10, 3), count)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_points_that_are_nowhere(bad: float) -> None:
    cloud = torch.randn(1, 10, 3)
    cloud[0, 3, 1] = bad
    with pytest.raises(InputError, match="a cloud holds NaN or infinity"):
        farthest_points(cloud, 5)


@settings(max_examples=30)
@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 10**6))
def test_neighbors_are_the_nearest(total: int, count: int, seed: int) -> None:
    torch.manual_seed(seed)
    count, clouds = min(count, total), torch.randn(2, total, 3) + 50  # far from the origin
    found = nearest_neighbors(clouds, count)
    distance = (clouds[:, :, None] - clouds[:, None]).double().square().sum(-1)
    got = distance.gather(2, found).sort(dim=2).values
    assert torch.allclose(got, distance.sort(dim=2).values[..., :count], rtol=1e-4, atol=1e-9)
    assert all(len(set(row)) == count for row in found.flatten(0, 1).tolist())
    assert bool((found == torch.arange(total)[:, None]).any(dim=2).all())


def test_training_chooses_among_more_farthest_points() -> None:
    clouds = torch.randn(3, 200, 3)
    more = farthest_points(clouds, 75)
    views = PointViews(num_points=64, normalize=False, y_up=False, obj_size=28, fusion=False)
    chosen = views.sample(clouds)
    places = (take(clouds, more)[:, :, None] == chosen[:, None]).all(dim=3)
    assert torch.equal(places.sum(dim=1), torch.ones(3, 64, dtype=torch.long))
    assert torch.equal(places[0], places[1])  # the same choice for the batch
    assert not torch.equal(chosen, views.sample(clouds))
    assert views.sample(clouds[:, :64]).shape == (3, 64, 3)
    assert torch.equal(views.eval().sample(clouds), take(clouds, farthest_points(clouds, 64)))
    assert views.sample(clouds[:, :50]).shape == (3, 50, 3)  # a smaller cloud keeps all its points
