"""The steps of a joint run: how many samples of each member, in which order, and what is refused."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.errors import InputError
from multimodal import JointDataModule, JointSpec
from multimodal.data import batch_sizes

SETS = {"image": {"class_path": "vision.Digits"}, "cloud": {"class_path": "pointcloud.DigitClouds"}}


def _photos(photos: Path, **args: Any) -> dict[str, dict[str, Any]]:
    """Two members with 18 training photos each."""
    settings = {"class_path": "vision.ImageFolder", "init_args": {"root": str(photos), "size": 32, **args}}
    return {"first": settings, "second": settings}


@given(
    counts=st.lists(st.integers(1, 100_000), min_size=1, max_size=6),
    extra=st.integers(0, 200),
    exponent=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_samples_of_a_step_add_up_and_follow_their_shares(counts: list[int], extra: int, exponent: float) -> None:
    named = {str(i): count for i, count in enumerate(counts)}
    total = 2 * len(counts) + extra
    sizes = batch_sizes(named, total, exponent)
    assert sum(sizes.values()) == total
    assert min(sizes.values()) >= 2
    order = sorted(named, key=lambda name: named[name])
    if exponent:
        assert all(sizes[a] <= sizes[b] + 1 for a, b in pairwise(order))
    else:
        assert max(sizes.values()) - min(sizes.values()) <= 1


def test_shares_of_the_three_ways_to_sample() -> None:
    counts = {"image": 1600, "sound": 100}
    assert batch_sizes(counts, 68, 1.0) == {"image": 64, "sound": 4}
    assert batch_sizes(counts, 68, 0.0) == {"image": 34, "sound": 34}
    assert batch_sizes(counts, 50, 0.5) == {"image": 40, "sound": 10}


def _epoch(data: JointDataModule, epoch: int) -> list[dict[str, Any]]:
    loader = data.train_dataloader()
    for part in loader.flattened:
        part.sampler.set_epoch(epoch)
    return [batch for batch, _, _ in loader]


@pytest.mark.parametrize(("sampling", "sizes"), [("equal", (6, 6)), ("proportional", (6, 6)), ("temperature", (6, 6))])
def test_an_epoch_has_a_batch_of_each_member_in_every_step(sampling: Any, sizes: tuple[int, int], photos: Path) -> None:
    data = JointDataModule(_photos(photos), batch_size=12, sampling=sampling)
    data.setup("fit")
    steps = _epoch(data, 0)
    assert len(steps) == 3  # 36 samples in all
    for step in steps:
        assert tuple(len(step[name][1]) for name in ("first", "second")) == sizes

    labels = torch.cat([step["first"][1] for step in steps])
    assert labels.bincount().tolist() == [6, 6, 6]  # each photo once


def test_order_depends_on_the_epoch_alone(photos: Path) -> None:
    data = JointDataModule(_photos(photos), batch_size=12, epoch_steps=5)
    data.setup("fit")
    first, again, later = _epoch(data, 1), _epoch(data, 1), _epoch(data, 2)
    assert len(first) == 5  # over 18 photos several times
    assert all(torch.equal(a["first"][0], b["first"][0]) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a["first"][0], b["first"][0]) for a, b in zip(first, later, strict=True))


def test_specification_has_that_of_each_member(photos: Path) -> None:
    data = JointDataModule(_photos(photos), batch_size=12)
    spec = data.spec()
    assert spec.members["first"]["classes"] == ["brick", "leaf", "sea"]
    assert JointSpec.from_dict(spec.to_dict()) == spec


def test_wrong_label_is_found_in_a_step(photos: Path) -> None:
    data = JointDataModule(_photos(photos), batch_size=12)
    data.setup("fit")
    (step, _, _) = next(iter(data.train_dataloader()))
    step["second"][1][0] = 7
    with pytest.raises(InputError, match=r"label 7 is outside 0\.\.2"):
        data.on_before_batch_transfer(step, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"members": {}}, "--data.members is empty"),
        ({"batch_size": 3}, "batch_size=3 for 2 members; expected 4 or more"),
        ({"sampling": "random"}, "sampling='random'"),
        ({"temperature": 0.5}, "temperature=0.5"),
        ({"epoch_steps": 0}, "epoch_steps=0"),
        ({"member": "sound"}, "member='sound'; the members are image, cloud"),
        ({"predict_path": "photos"}, "--data.predict_path photos needs the member that reads it"),
        ({"members": {"image": {"class_path": "vision.Digits", "init_args": {"batch_size": 5}}}}, "sets batch_size"),
        ({"members": {"image": {"class_path": "vision.Digits", "init_args": {"shot": 5}}}}, "does not take these"),
        ({"members": {"image": {"class_path": "vision.ImageClassifier"}}}, "vision exports no such class"),
        ({"members": {"image": {"class_path": "vision.Digits", "args": {}}}}, "member 'image' has args; expected"),
    ],
)
def test_what_the_data_cannot_be(options: dict[str, Any], message: str) -> None:
    args: dict[str, Any] = {"members": SETS} | options
    with pytest.raises(InputError, match=message):
        JointDataModule(**args)


def test_missing_data_name_the_member(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"member 'first': .*there is no"):
        JointDataModule(_photos(tmp_path / "nowhere"), batch_size=8).spec()
