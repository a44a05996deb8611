"""Folding: exact maths, every block, every variant, every dtype, and what it must leave alone or refuse."""

import copy
import io
from typing import Any

import pytest
import timm
import torch
from golden_values import fill, golden_input, relative_difference
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.utils import reparameterize_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.testing import assert_close

import core
from core.layers import DilatedReparamBlock, UniRepLKNetBlock
from core.reparam import dilated_to_dense, embed_kernel, fold_bn

LIMITS = {torch.float32: 1e-5, torch.float64: 1e-12}
KERNELS = [0, 3, 5, 7, 9, 11, 13, 15, 17, 19]


def _filled(module: nn.Module) -> Any:
    """In eval mode, with norm statistics, layer scales and GRN far from their initial values."""
    fill(module)
    return module.eval()


def _difference(model: nn.Module, folded: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return relative_difference(folded(x), model(x))


odd = st.integers(0, 4).map(lambda half: 2 * half + 1)


@settings(max_examples=80, deadline=None)
@given(
    k=odd,
    dilation=st.integers(1, 7),
    margin=st.integers(0, 4),
    size=st.integers(1, 14),
    groups=st.sampled_from([1, 2, 4]),
)
def test_dense_embedded_kernel_equals_dilated_convolution(
    k: int, dilation: int, margin: int, size: int, groups: int
) -> None:
    weight, x = torch.randn(4, 4 // groups, k, k, dtype=torch.float64), torch.randn(2, 4, size, 9, dtype=torch.float64)
    reach = (k - 1) * dilation + 1
    dense = embed_kernel(dilated_to_dense(weight, dilation), reach + 2 * margin)
    assert dense.shape == (4, 4 // groups, reach + 2 * margin, reach + 2 * margin)
    expected = F.conv2d(x, weight, padding=reach // 2, dilation=dilation, groups=groups)
    assert_close(F.conv2d(x, dense, padding=reach // 2 + margin, groups=groups), expected)


@pytest.mark.parametrize(("small", "size"), [(5, 3), (4, 7), (3, 6)])
def test_kernels_that_cannot_be_centred(small: int, size: int) -> None:
    with pytest.raises(ValueError, match=f"cannot centre a {small}x{small} kernel in a {size}x{size} one"):
        embed_kernel(torch.zeros(1, 1, small, small), size)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("linear", [False, True])
def test_fold_bn(linear: bool, bias: bool, affine: bool) -> None:
    layer = nn.Linear(6, 4, bias=bias) if linear else nn.Conv2d(6, 4, 3, groups=2, bias=bias)
    bn = nn.BatchNorm1d(4, affine=affine, eps=1e-2) if linear else nn.BatchNorm2d(4, affine=affine, eps=1e-2)
    both = _filled(nn.Sequential(layer, bn)).double()
    weight, offset = fold_bn(layer.weight, layer.bias, bn)
    x = torch.randn(3, 6, dtype=torch.float64) if linear else torch.randn(3, 6, 5, 5, dtype=torch.float64)
    got = F.linear(x, weight, offset) if linear else F.conv2d(x, weight, offset, groups=2)
    assert_close(got, both(x))
    assert not weight.requires_grad


def test_fold_bn_refuses() -> None:
    with pytest.raises(RuntimeError, match=r"BatchNorm2d in train mode.*Call model.eval\(\) first"):
        fold_bn(torch.ones(2, 2, 1, 1), None, nn.BatchNorm2d(2))
    with pytest.raises(ValueError, match="track_running_stats=True"):
        fold_bn(torch.ones(2, 2, 1, 1), None, nn.BatchNorm2d(2, track_running_stats=False).eval())


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kind_of_block(kernel: int, scale: float | None, dtype: torch.dtype) -> None:
    block = _filled(UniRepLKNetBlock(8, kernel, layer_scale_init_value=scale)).to(dtype)
    folded = core.reparameterize(block)
    assert _difference(block, folded, golden_input(2, 8, 24, 17).to(dtype)) < LIMITS[dtype]
    built = UniRepLKNetBlock(8, kernel, layer_scale_init_value=scale, inference_mode=True).to(dtype).eval()
    built.load_state_dict(folded.state_dict())
    assert _difference(folded, built, golden_input(2, 8, 24, 17).to(dtype)) == 0


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("kernel", [5, 7, 13])
def test_dilated_block_alone(kernel: int, dtype: torch.dtype) -> None:
    block = _filled(DilatedReparamBlock(4, kernel)).to(dtype)
    folded = core.reparameterize(block)
    assert (block.merged, folded.merged) == (False, True)
    assert list(folded.state_dict()) == ["lk_origin.weight", "lk_origin.bias"]
    assert _difference(block, folded, golden_input(2, 4, 24, 17).to(dtype)) < LIMITS[dtype]
    with pytest.raises(RuntimeError, match="train mode"):
        block.train().reparameterize()


SMALL = {"dims": (8, 8, 12, 12), "num_classes": 10}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("unireplknet_a", {}),
        ("unireplknet_t", {}),
        *[(f"unireplknet_{v}", SMALL) for v in ("f", "p", "n", "t", "s", "b", "l", "xl")],
        ("test_unireplknet", {}),
    ],
)
def test_every_variant(name: str, options: dict[str, Any]) -> None:
    model, x = _filled(timm.create_model(name, **options)), golden_input(1, 3, 64, 96)
    before = copy.deepcopy(model.state_dict())
    folded = core.reparameterize(model)
    assert _difference(model, folded, x) < 1e-5
    assert not [m for m in folded.modules() if isinstance(m, _BatchNorm)]
    assert_close(model.state_dict(), before, rtol=0, atol=0)
    model.double()
    assert _difference(model, core.reparameterize(model), x.double()) < 1e-12
    built = timm.create_model(name, inference_mode=True, **options)
    built.load_state_dict(folded.state_dict(), strict=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_fold_in_double(dtype: torch.dtype) -> None:
    model = _filled(timm.create_model("test_unireplknet")).to(dtype)
    expected = core.reparameterize(copy.deepcopy(model).double()).to(dtype).state_dict()
    assert_close(core.reparameterize(model).state_dict(), expected, rtol=0, atol=0)


def test_train_mode_is_refused_wherever_it_is() -> None:
    model = _filled(timm.create_model("test_unireplknet"))
    model.stages[1][0].train()
    with pytest.raises(RuntimeError, match="UniRepLKNetBlock in train mode"):
        core.reparameterize(model)
    with pytest.raises(RuntimeError, match=r"UniRepLKNet in train mode.*Call model.eval\(\) first"):
        core.reparameterize(model.train())


def test_second_time_nothing_happens_and_timm_agrees() -> None:
    model = _filled(timm.create_model("test_unireplknet"))
    once = core.reparameterize(model)
    twice = core.reparameterize(once)
    assert twice is not once
    for other in (twice, reparameterize_model(model), reparameterize_model(once)):
        assert_close(other.state_dict(), once.state_dict(), rtol=0, atol=0)


def test_inside_other_modules() -> None:
    backbone = _filled(timm.create_model("test_unireplknet", features_only=True, out_indices=(1, 3)))
    outer = nn.Sequential(nn.ModuleDict({"backbone": backbone, "neck": nn.BatchNorm2d(16)})).eval()
    folded = core.reparameterize(outer)[0]
    assert isinstance(folded["neck"], nn.BatchNorm2d)
    assert not [m for m in folded["backbone"].modules() if isinstance(m, _BatchNorm)]
    x = golden_input(1, 3, 64, 64)
    for got, expected in zip(folded["backbone"](x), backbone(x), strict=True):
        assert relative_difference(got, expected) < 1e-5


def test_synchronised_norms_fold() -> None:
    model = _filled(timm.create_model("test_unireplknet"))
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)).eval()
    assert any(isinstance(m, nn.SyncBatchNorm) for m in synchronised.modules())
    assert_close(
        core.reparameterize(synchronised).state_dict(), core.reparameterize(model).state_dict(), rtol=0, atol=0
    )


def test_frozen_parameters_stay_frozen_and_the_result_can_be_saved() -> None:
    model = _filled(timm.create_model("test_unireplknet")).requires_grad_(False)
    model.head.requires_grad_(True)
    folded = core.reparameterize(model)
    assert [n for n, p in folded.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]
    assert all(p.is_leaf for p in folded.parameters())
    buffer = io.BytesIO()
    torch.save(folded.state_dict(), buffer)
    buffer.seek(0)
    built = timm.create_model("test_unireplknet", inference_mode=True).eval()
    built.load_state_dict(torch.load(buffer), strict=True)
    assert _difference(folded, built, golden_input(1, 3, 64, 64)) == 0
