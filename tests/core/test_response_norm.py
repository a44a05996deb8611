"""Global response normalization against its formula, and the block that overwrites its own maps without gradients."""

from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

import core
from core.backbones.replknet import ConvFFN
from core.backbones.unireplknet import GlobalResponseNorm, UniRepLKNetBlock


def response_norm(x: Tensor, gamma: Tensor, beta: Tensor | None, eps: float) -> Tensor:
    """Return the layer with these tensors as its parameters."""
    layer = GlobalResponseNorm(x.shape[-1], use_bias=beta is not None, eps=eps)
    del layer.gamma
    layer.gamma = gamma.view(1, 1, 1, -1)
    if beta is not None:
        del layer.beta
        layer.beta = beta.view(1, 1, 1, -1)
    return layer(x)


def _formula(x: Tensor, gamma: Tensor, beta: Tensor | None, eps: float) -> Tensor:
    norm = x.square().sum((1, 2), keepdim=True).sqrt()
    y = (gamma * norm / (norm.mean(-1, keepdim=True) + eps) + 1) * x
    return y if beta is None else y + beta


@settings(max_examples=40)
@given(shape=st.tuples(*[st.integers(1, 6)] * 4), bias=st.booleans(), grad=st.booleans())
def test_values_and_gradients(shape: tuple[int, int, int, int], bias: bool, grad: bool) -> None:
    x, gamma, beta = (torch.randn(s, dtype=torch.float64).requires_grad_() for s in (shape, shape[-1:], shape[-1:]))
    offset = beta if bias else None
    with torch.set_grad_enabled(grad):
        got = response_norm(x, gamma, offset, 1e-6)
    wanted = _formula(x, gamma, offset, 1e-6)
    assert_close(got, wanted)
    if grad:
        grad, inputs = torch.randn_like(x), [x, gamma, beta][: 3 if bias else 2]
        pairs = zip(torch.autograd.grad(got, inputs, grad), torch.autograd.grad(wanted, inputs, grad), strict=True)
        for ours, theirs in pairs:
            assert_close(ours, theirs)


def test_second_derivatives() -> None:
    x, gamma, beta = (torch.randn(s, dtype=torch.float64).requires_grad_() for s in ((2, 3, 2, 4), (4,), (4,)))
    assert torch.autograd.gradgradcheck(lambda x, gamma: response_norm(x, gamma, None, 1e-6), (x, gamma))
    assert torch.autograd.gradgradcheck(lambda *inputs: response_norm(*inputs, 1e-6), (x, gamma, beta))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_many_samples_of_other_dtypes(dtype: torch.dtype) -> None:
    x = (300 * torch.randn(5, 40, 40, 96)).to(dtype)  # squares overflow float16, and all together exceed the cache
    gamma, beta = torch.randn(96), torch.randn(96)
    with torch.no_grad():
        got = response_norm(x, gamma, beta, 1e-6)
    wanted = _formula(x.double(), gamma.double(), beta.double(), 1e-6)
    assert got.dtype == dtype
    assert_close(got.double(), wanted, rtol=0, atol=4 * torch.finfo(dtype).eps * wanted.abs().max().item())


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_of_other_dtypes(dtype: torch.dtype, again: bool) -> None:
    """Gradients are sums over thousands of pixels, whose products overflow float16; ``again`` is the way on GPUs."""
    torch.manual_seed(0)
    x, grad = (300 * torch.randn(2, 30, 30, 16)).to(dtype), torch.randn(2, 30, 30, 16).to(dtype)
    gamma, beta = torch.randn(16), torch.randn(16)
    got, wanted = [], []
    for found, kind, norm in ((got, dtype, response_norm), (wanted, torch.float64, _formula)):
        inputs = [x.to(kind).requires_grad_(), *(t.to(torch.promote_types(kind, torch.float32)) for t in (gamma, beta))]
        inputs[1:] = [t.clone().requires_grad_() for t in inputs[1:]]
        found += torch.autograd.grad(norm(*inputs, 1e-6), inputs, grad.to(kind), create_graph=again)
    for ours, theirs in zip(got, wanted, strict=True):
        limit = 4 * torch.finfo(dtype).eps * theirs.abs().max().item()
        assert_close(ours.double(), theirs, rtol=0, atol=limit)


def test_offset_of_many_places_in_float16() -> None:
    x, beta = torch.randn(8, 112, 112, 2).half(), torch.zeros(2, requires_grad=True)
    response_norm(x, torch.zeros(2), beta, 1e-6).backward(torch.ones_like(x))
    assert beta.grad is not None
    assert beta.grad.tolist() == [8 * 112 * 112] * 2  # beyond the range of float16


@pytest.mark.parametrize("composed", [False, True])
def test_dead_channels_have_no_gradient(composed: bool) -> None:
    x, gamma = torch.randn(2, 3, 3, 4), torch.randn(4)
    x[..., 1] = 0

    def loss(x: Tensor, gamma: Tensor) -> Tensor:
        return response_norm(x, gamma, None, 1e-6).square().sum()

    if composed:  # as torch.func and compilers compute it
        to_x, to_gamma = torch.func.grad(loss, argnums=(0, 1))(x, gamma)
    else:
        to_x, to_gamma = torch.autograd.grad(loss(x.requires_grad_(), gamma.requires_grad_()), (x, gamma))
    assert to_x.isfinite().all()
    assert (to_x[..., 1] == 0).all()
    assert to_gamma.isfinite().all()


@pytest.mark.parametrize("kernel", [3, 13])
def test_folded_block_overwrites_only_its_own_maps(kernel: int) -> None:
    """Without gradients, GELU and GRN work in place unless there is a hook; the input of the block never changes."""
    torch.manual_seed(0)
    block = UniRepLKNetBlock(8, kernel, layer_scale_init_value=0.5).eval()
    torch.nn.init.normal_(block.act[1].gamma)
    block = core.reparameterize(block)
    x = torch.randn(2, 8, 9, 7).to(memory_format=torch.channels_last)
    before, seen = x.clone(), list[Tensor]()
    wanted = block(x).detach()
    with torch.inference_mode():
        assert_close(block(x), wanted, rtol=1e-5, atol=1e-5)
    assert_close(x, before, rtol=0, atol=0)
    block.pwconv1.register_forward_hook(lambda *args: seen.append(args[2]))
    with torch.no_grad():
        assert_close(block(x), wanted, rtol=1e-5, atol=1e-5)
        expected = block.pwconv1[1](block.se(block.norm(block.dwconv(x))).permute(0, 2, 3, 1))
    assert_close(seen[0], expected, rtol=1e-5, atol=1e-5)


def test_hook_before_a_part_of_a_folded_block_is_called() -> None:
    block, seen = core.reparameterize(UniRepLKNetBlock(8, 3).eval()), list[Any]()
    for part in block.act:
        part.register_forward_pre_hook(lambda *args: seen.append(args[0]))
    with torch.no_grad():
        block(torch.randn(1, 8, 5, 5))
    assert seen == list(block.act)


def test_shortcut_of_a_folded_block_stays_wide_under_autocast() -> None:
    block = core.reparameterize(UniRepLKNetBlock(8, 3).eval())
    x = torch.randn(1, 8, 5, 5)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert block(x).dtype == torch.float32


@pytest.mark.parametrize("net", ["test_unireplknet", "test_replknet"])
@pytest.mark.parametrize("folded", [False, True])
def test_a_net_without_gradients_gives_the_same(net: str, folded: bool) -> None:
    torch.manual_seed(0)
    model = timm.create_model(net, num_classes=3).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.normal_(parameter)
    model = core.reparameterize(model) if folded else model
    x = torch.randn(2, 3, 64, 64)
    before, wanted = x.clone(), model(x).detach()
    with torch.no_grad():
        got, maps = model.forward_intermediates(x)
        assert_close(model(x), wanted, rtol=1e-5, atol=1e-5)
    assert_close(x, before, rtol=0, atol=0)
    assert_close(maps, [m.detach() for m in model.forward_intermediates(x)[1]], rtol=1e-5, atol=1e-5)
    assert_close(got, maps[-1], rtol=0, atol=0)


def test_replknet_blocks_leave_what_a_hook_has_seen() -> None:
    block, seen = core.reparameterize(ConvFFN(8, 16).eval()), list[Tensor]()
    x = torch.randn(2, 8, 5, 5)
    block.pw1.register_forward_hook(lambda *args: seen.append(args[2]))
    with torch.no_grad():
        block(x)
        assert_close(seen[0], block.pw1[0](x), rtol=0, atol=0)
