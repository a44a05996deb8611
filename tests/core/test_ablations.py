"""What UniRepLKNet's paper compares itself with: other extra structures, and other branches beside a large kernel."""

import re
from typing import Any, get_args

import pytest
import timm
import torch
from golden_values import TINY, difference, filled, golden_input, shapes_only, tiny
from torch import nn

import core
from core.backbones.unireplknet import (
    BranchType,
    DilatedReparamBlock,
    ExtraStructure,
    SqueezeExcite,
    dilated_branches,
    extra_structure,
)

EXTRAS = get_args(ExtraStructure)
BRANCHES: dict[BranchType, tuple[tuple[int, int], ...]] = {
    "dilated": ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    "none": (),
    "same_kernel": ((5, 1), (7, 1), (3, 1), (3, 1), (3, 1)),
    "same_equivalent_kernel": ((5, 1), (13, 1), (7, 1), (9, 1), (11, 1)),
}


def _parallel(block: nn.Module) -> list[str]:
    return [name.removeprefix("dil_conv_") for name, _ in block.named_children() if name.startswith("dil_conv_")]


@pytest.mark.parametrize("extra", EXTRAS)
def test_every_extra_structure_folds(extra: ExtraStructure) -> None:
    model, x = tiny(extra=extra).double(), golden_input(2, 3, 64, 96).double()
    folded = core.reparameterize(model)
    assert difference(model, folded, x) < 1e-12
    built = timm.create_model(TINY, extra=extra, inference_mode=True).double().eval()
    built.load_state_dict(folded.state_dict(), strict=True)
    assert difference(folded, built, x) == 0


@pytest.mark.parametrize("extra", EXTRAS)
def test_extra_structures_keep_the_shape_and_train(extra: ExtraStructure) -> None:
    layer, x = filled(extra_structure(extra, 12)), golden_input(2, 12, 9, 7)
    assert layer(x).shape == x.shape
    model = tiny(extra=extra).train()
    model(golden_input(2, 3, 64, 64)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(("extra", "mixes"), [("two_1x1", (1, 12)), ("two_dw3x3", (25, 1)), ("bottleneck", (9, 12))])
def test_what_extra_structures_mix(extra: ExtraStructure, mixes: tuple[int, int]) -> None:
    layer, x = extra_structure(extra, 12), torch.ones(1, 12, 9, 9, requires_grad=True)
    for parameter in layer.parameters():
        nn.init.ones_(parameter)  # so that no ReLU returns 0
    (gradient,) = torch.autograd.grad(layer(x)[0, 5, 4, 4], x)
    reached = gradient[0] != 0
    assert (int(reached.any(dim=0).sum()), int(reached.any(dim=2).any(dim=1).sum())) == mixes


def test_defaults_are_the_official_ones() -> None:
    model = tiny()
    assert isinstance(model.stages[0][0].se, SqueezeExcite)
    explicit = tiny(extra="se", reparam="dilated")
    assert list(explicit.state_dict()) == list(model.state_dict())
    assert _parallel(model.stages[3][0].dwconv) == ["k5_1", "k7_2", "k3_3", "k3_4", "k3_5"]


@pytest.mark.parametrize("reparam", get_args(BranchType))
def test_every_kind_of_branches_folds(reparam: BranchType) -> None:
    model, x = tiny(reparam=reparam).double(), golden_input(2, 3, 64, 96).double()
    assert dilated_branches(13, reparam) == model.stages[3][0].dwconv.branches == BRANCHES[reparam]
    folded = core.reparameterize(model)
    assert difference(model, folded, x) < 1e-12
    built = timm.create_model(TINY, inference_mode=True).double().eval()  # all kinds become the same net
    built.load_state_dict(folded.state_dict(), strict=True)
    assert difference(folded, built, x) == 0


def test_branches_for_one_size_and_a_kind_for_the_others() -> None:
    model = tiny(reparam="none", branches={13: [(3, 2)]})
    assert [model.stages[s][0].dwconv.branches for s in (1, 2, 3)] == [(), (), ((3, 2),)]


@pytest.mark.parametrize("reparam", get_args(BranchType))
@pytest.mark.parametrize("size", [5, 7, 9, 11, 15, 17, 19, 31])
def test_kinds_of_branches_fit_every_kernel(size: int, reparam: BranchType) -> None:
    block = filled(DilatedReparamBlock(4, size, branches=reparam)).double()
    reach = sorted((k - 1) * r + 1 for k, r in block.branches)
    dilated = sorted((k - 1) * r + 1 for k, r in dilated_branches(size))
    assert reparam != "same_equivalent_kernel" or reach == dilated
    assert difference(block, core.reparameterize(block), golden_input(2, 4, 20, 13).double()) < 1e-12


@pytest.mark.parametrize(
    ("branches", "names"),
    [
        ([(3, 1), (3, 1), (5, 1), (3, 1)], ["k3_1", "k3_1_2", "k5_1", "k3_1_3"]),
        ([(3, 2), (3, 2)], ["k3_2", "k3_2_2"]),
        ([(3, 1), (3, 11)], ["k3_1", "k3_11"]),
        ([(3, 11), (3, 1)], ["k3_11", "k3_1"]),
        ([(1, 1), (1, 12)], ["k1_1", "k1_12"]),
    ],
)
def test_equal_branches_are_numbered(branches: list[tuple[int, int]], names: list[str]) -> None:
    block = filled(DilatedReparamBlock(4, 31, branches=branches)).double()
    assert _parallel(block) == names
    assert difference(block, core.reparameterize(block), golden_input(2, 4, 20, 13).double()) < 1e-12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"extra": "cbam"}, "extra='cbam'; expected one of se, none, bottleneck, two_1x1, two_dw3x3"),
        ({"extra": ""}, "extra=''; expected one of"),
        ({"reparam": "same"}, "reparam='same'; expected one of dilated, none, same_kernel, same_equivalent_kernel"),
        ({"branches": {13: [(3, 7)]}}, "branch (k=3, r=7) does not fit a 13x13 kernel"),
    ],
)
def test_unknown_kinds_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        timm.create_model(TINY, **options)


@pytest.mark.parametrize("size", [0, 3, 4, 8])
def test_no_branches_for_small_or_even_kernels(size: int) -> None:
    with pytest.raises(ValueError, match=f"no branches for a kernel of size {size}; use an odd size of 5 or more"):
        dilated_branches(size)


def test_kinds_do_not_change_the_blocks_without_a_large_kernel() -> None:
    small = [name for name in shapes_only(TINY).state_dict() if name.startswith("stages.0.")]
    with torch.device("meta"):
        model = timm.create_model(TINY, reparam="same_kernel")
    assert [name for name in model.state_dict() if name.startswith("stages.0.")] == small
