"""Several parallel convolutions, each with its norm, as one: every kind that merges exactly, and those that do not."""

import re
from typing import Any

import pytest
import torch
from golden_values import difference, filled, golden_input
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from core.layers import DepthwiseConv2d
from core.reparam import merge_kernels, merged_kernel

PLAIN = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
SIDES = (9, 7, 6)


class _Sum(nn.Module):
    """A sum of convolutions, each with a norm or an identity, and of the input if ``shortcut`` is true."""

    def __init__(self, branches: list[tuple[_ConvNd, nn.Module | None]], shortcut: bool = False) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(conv, norm or nn.Identity()) for conv, norm in branches)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        total = sum((branch(x) for branch in self.branches), start=torch.zeros(()))
        return total + x if self.shortcut else total

    def merged(self) -> _ConvNd:
        pairs = [(conv, None if isinstance(norm, nn.Identity) else norm) for conv, norm in self.branches]
        return merge_kernels(pairs, identity=self.shortcut)


def _sum(*branches: _ConvNd | tuple[_ConvNd, nn.Module], shortcut: bool = False) -> _Sum:
    pairs = [branch if isinstance(branch, tuple) else (branch, None) for branch in branches]
    return filled(_Sum(pairs, shortcut)).double()


@st.composite
def _sums(draw: st.DrawFn) -> tuple[_Sum, int]:
    """Draw branches that merge exactly: of the same stride and number of groups, with aligned centers."""
    dimensions, transposed = draw(st.integers(1, 3)), draw(st.booleans())
    shortcut = draw(st.booleans())
    stride = 1 if shortcut else draw(st.integers(1, 3))
    groups, outputs = draw(st.sampled_from([1, 2, 4])), 4 if shortcut else draw(st.sampled_from([4, 8]))
    shift = 0 if shortcut else draw(st.integers(0, 1))  # padding beyond the one that keeps the size
    options: dict[str, Any] = {"stride": stride, "groups": groups}
    if transposed:
        options["output_padding"] = draw(st.integers(0, stride - 1))
    branches = []
    for _ in range(draw(st.integers(1, 4))):
        kernel = draw(st.tuples(*[st.sampled_from([1, 3, 5])] * dimensions))
        dilation = draw(st.tuples(*[st.integers(1, 3)] * dimensions))
        padding = tuple((k - 1) * r // 2 + shift for k, r in zip(kernel, dilation, strict=True))
        build: Any = (TRANSPOSED if transposed else PLAIN)[dimensions]
        options |= {"padding": padding, "dilation": dilation, "bias": draw(st.booleans())}
        norm = NORMS[dimensions](outputs) if draw(st.booleans()) else None
        branches.append((build(4, outputs, kernel, **options), norm))
    return filled(_Sum(branches, shortcut)).double(), dimensions


@settings(max_examples=150)
@given(_sums())
def test_branches_of_any_kind_merge(drawn: tuple[_Sum, int]) -> None:
    branches, dimensions = drawn
    merged = branches.merged()
    assert type(merged) is type(branches.branches[0][0])
    assert set(merged.dilation) == {1}
    assert difference(branches, merged, golden_input(2, 4, *SIDES[:dimensions]).double()) < 1e-12


@pytest.mark.parametrize(
    "branches",
    [
        _sum(nn.Conv2d(4, 4, 5, padding="same"), nn.Conv2d(4, 4, 3, padding="same", dilation=2)),
        _sum(nn.Conv2d(4, 4, (5, 3), padding="same"), nn.Conv2d(4, 4, (3, 5), padding=(1, 2)), shortcut=True),
        _sum(nn.Conv1d(4, 4, 5, padding="valid"), nn.Conv1d(4, 4, 3, dilation=2), nn.Conv1d(4, 4, 5, padding=0)),
        _sum(nn.Conv1d(4, 8, 7, padding=1), nn.Conv1d(4, 8, 5, padding="valid")),
        _sum((nn.Conv3d(4, 4, 3, padding="same", groups=4), nn.BatchNorm3d(4)), shortcut=True),
    ],
)
def test_paddings_by_name(branches: _Sum) -> None:
    merged = branches.merged()
    assert all(isinstance(size, int) for size in merged.padding)
    dimensions = merged.weight.ndim - 2
    assert difference(branches, merged, golden_input(2, 4, *SIDES[:dimensions]).double()) < 1e-12


def test_largest_kernel_may_come_later_and_differ_by_dimension() -> None:
    branches = _sum(nn.Conv2d(4, 4, (1, 7), padding=(0, 3)), nn.Conv2d(4, 4, (5, 1), padding=(2, 0)))
    merged = branches.merged()
    assert (merged.kernel_size, merged.padding) == ((5, 7), (2, 3))
    assert difference(branches, merged, golden_input(2, 4, 9, 7).double()) < 1e-12


def test_depthwise_layers_of_this_project() -> None:
    branches = _sum((DepthwiseConv2d(4, 9), nn.BatchNorm2d(4)), DepthwiseConv2d(4, 3, dilation=4), shortcut=True)
    merged = branches.merged()
    assert isinstance(merged, DepthwiseConv2d)
    assert difference(branches, merged, golden_input(2, 4, 20, 13).double()) < 1e-12
    with_plain = _sum(DepthwiseConv2d(4, 3, dilation=2), nn.Conv2d(4, 4, 7, padding=3, groups=4))
    assert difference(with_plain, with_plain.merged(), golden_input(2, 4, 20, 13).double()) < 1e-12


def test_the_result_is_like_the_first_and_the_branches_stay() -> None:
    large = nn.Conv2d(4, 4, 5, padding=2, bias=False)
    branches = _sum((large, nn.BatchNorm2d(4)), nn.Conv2d(4, 4, 3, padding=1)).half()
    large.requires_grad_(False)
    before = {name: value.clone() for name, value in branches.state_dict().items()}
    merged = branches.merged()
    assert (merged.weight.dtype, merged.bias.dtype) == (torch.float16, torch.float16)
    assert not any(p.requires_grad for p in merged.parameters())
    assert all(torch.equal(value, before[name]) for name, value in branches.state_dict().items())
    assert large.bias is None
    weight, bias = merged_kernel([(large, branches.branches[0][1])])
    assert (weight.dtype, bias.dtype, weight.shape) == (torch.float64, torch.float64, (4, 4, 5, 5))


@pytest.mark.parametrize(
    ("convs", "message"),
    [
        (
            [nn.Conv2d(4, 4, 5, padding=2), nn.Conv2d(4, 4, 3)],
            "do not align: kernel [(5, 5), (3, 3)], dilation [(1, 1), (1, 1)], padding [(2, 2), (0, 0)]; use padding",
        ),
        ([nn.Conv1d(4, 4, 5, padding="valid"), nn.Conv1d(4, 4, 3, padding="valid")], "centers of the branches do not"),
        ([nn.Conv1d(4, 4, 5, padding=2), nn.Conv1d(4, 4, 5, padding=2, dilation=2)], "centers of the branches do not"),
        (
            [nn.Conv1d(4, 4, 5, 1, 2), nn.Conv1d(4, 4, 3, 2, 1)],
            "stride (1,) and (2,) do not merge; it must be",
        ),
        ([nn.Conv1d(4, 4, 3), nn.Conv1d(4, 4, 3, groups=2)], "branches with groups 1 and 2 do not merge"),
        ([nn.Conv1d(4, 4, 3), nn.Conv1d(4, 8, 3)], "branches with out_channels 4 and 8 do not merge"),
        ([nn.Conv1d(4, 4, 3), nn.Conv1d(2, 4, 3)], "branches with in_channels 2 and 4 do not merge"),
        ([nn.Conv1d(4, 4, 3), nn.Conv2d(4, 4, 3)], "branches with stride (1, 1) and (1,) do not merge"),
        ([nn.Conv1d(4, 4, 3), nn.ConvTranspose1d(4, 4, 3)], "branches with transposed False and True do not merge"),
        (
            [nn.ConvTranspose1d(4, 4, 3, 2), nn.ConvTranspose1d(4, 4, 3, 2, output_padding=1)],
            "branches with output_padding (0,) and (1,) do not merge",
        ),
        (
            [nn.ConvTranspose1d(4, 4, 3, 2, dilation=3, output_padding=2)],
            "output_padding=(2,) needs dilation, which merging takes away; keep it below the stride",
        ),
        ([nn.Conv1d(4, 4, 3, padding=1, padding_mode="circular")], "only branches with padding_mode='zeros' merge"),
        ([nn.Conv1d(4, 4, 3), nn.Conv1d(4, 4, 3, padding_mode="reflect")], "only branches with padding_mode='zeros'"),
        ([nn.Conv1d(4, 4, 4, padding="same")], "cannot center a 4 kernel in a 4 one: both must be odd"),
        ([nn.Conv2d(4, 4, (3, 2), padding=0)], "cannot center a 3x2 kernel"),
    ],
)
def test_branches_that_do_not_merge(convs: list[_ConvNd], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        merge_kernels([(conv, None) for conv in convs])


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 3, padding=1, stride=2),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 3, padding=(1, 0)),
        nn.Conv2d(4, 8, 3, padding=1),
        nn.ConvTranspose2d(4, 4, 3, padding=1, stride=2),
    ],
)
def test_identity_beside_another_size_is_refused(conv: _ConvNd) -> None:
    with pytest.raises(ValueError, match="an identity merges only where the output has the input's shape; got Conv"):
        merge_kernels([(conv, None)], identity=True)


def test_norms_in_train_mode_are_refused() -> None:
    with pytest.raises(RuntimeError, match="BatchNorm1d in train mode"):
        merge_kernels([(nn.Conv1d(4, 4, 3), nn.BatchNorm1d(4))])
