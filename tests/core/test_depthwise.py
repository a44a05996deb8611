"""The depthwise convolution against ``F.conv2d``: values, gradients, memory formats, transforms, tracing, refusals."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from core.layers import DepthwiseConv2d
from core.ops import depthwise_conv2d

FORMATS = [torch.contiguous_format, torch.channels_last]


def _reference(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, dilation: int) -> Tensor:
    padding = [dilation * (size - 1) // 2 for size in weight.shape[2:]]
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups=x.shape[1])


def _tensors(kernel: tuple[int, int], size: tuple[int, int], bias: bool) -> list[Tensor | None]:
    random = torch.Generator().manual_seed(0)
    shapes = [(2, 3, *size), (3, 1, *kernel), (3,)]
    tensors = [torch.randn(shape, generator=random, dtype=torch.float64, requires_grad=True) for shape in shapes]
    return [tensors[0], tensors[1], tensors[2] if bias else None]


def _output_and_gradients(y: Tensor, inputs: list[Tensor | None]) -> list[Tensor]:
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    return [y.detach(), *torch.autograd.grad((y * grad).sum(), [t for t in inputs if t is not None])]


odd = st.integers(0, 7).map(lambda half: 2 * half + 1)


@settings(max_examples=150)
@given(
    kernel=st.one_of(odd.map(lambda k: (k, k)), st.tuples(odd, odd)),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    dilation=st.integers(1, 4),
    stride=st.integers(1, 2),
    bias=st.booleans(),
    memory_format=st.sampled_from(FORMATS),
)
def test_equals_conv2d_in_value_and_gradients(
    kernel: tuple[int, int],
    size: tuple[int, int],
    dilation: int,
    stride: int,
    bias: bool,
    memory_format: torch.memory_format,
) -> None:
    inputs = _tensors(kernel, size, bias)
    x, weight, offset = inputs
    assert x is not None
    assert weight is not None
    y = depthwise_conv2d(x.to(memory_format=memory_format), weight, offset, stride=stride, dilation=dilation)
    assert y.shape == (2, 3, -(-size[0] // stride), -(-size[1] // stride))
    expected = _output_and_gradients(_reference(x, weight, offset, stride, dilation), inputs)
    for got, wanted in zip(_output_and_gradients(y, inputs), expected, strict=True):
        assert_close(got, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("kernel", "size", "dilation", "stride"), [(3, 5, 2, 1), (7, 3, 1, 1), (5, 1, 1, 1), (5, 4, 2, 2)]
)
def test_gradients_are_derivatives(kernel: int, size: int, dilation: int, stride: int) -> None:
    inputs = _tensors((kernel, kernel), (size, size), bias=True)

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return depthwise_conv2d(x, weight, bias, stride=stride, dilation=dilation)

    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [1, 20])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_keeps_dtype_and_memory_format(dtype: torch.dtype, size: int, memory_format: torch.memory_format) -> None:
    x = torch.randn(2, 4, size, size).to(dtype, memory_format=memory_format)
    weight, bias = torch.randn(4, 1, 13, 13).to(dtype), torch.randn(4).to(dtype)
    y = depthwise_conv2d(x, weight, bias)
    expected = _reference(x.double(), weight.double(), bias.double(), 1, 1)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=memory_format)
    assert_close(y.double(), expected, rtol=0, atol=300 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("size", [1, 8])
def test_autocast_and_meta(size: int) -> None:
    x, weight = torch.randn(1, 2, size, size), torch.randn(2, 1, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert depthwise_conv2d(x, weight).dtype == torch.bfloat16
    assert depthwise_conv2d(x.to("meta"), weight.to("meta")).shape == x.shape


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # expected: torch.jit is deprecated and still in use
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # expected: the checks of shapes become constants
def test_traced_at_a_small_size_runs_at_a_larger_one() -> None:
    layer = DepthwiseConv2d(2, 13, bias=True).eval()
    traced = torch.jit.trace(layer, torch.randn(1, 2, 2, 3))
    for size in (1, 2, 9, 40):
        x = torch.randn(2, 2, size, size + 1)
        assert_close(traced(x), _reference(x, layer.weight, layer.bias, 1, 1))


@pytest.mark.parametrize("weight", [(4, 1, 4, 4), (4, 1, 3, 2), (3, 1, 3, 3), (4, 2, 3, 3)])
def test_weights_that_are_not_depthwise(weight: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"weight of shape .* for an input with 4 channels; expected \(4, 1, K, K\)"):
        depthwise_conv2d(torch.randn(1, 4, 8, 8), torch.randn(weight))


@pytest.mark.parametrize("size", [0, -1, 2, 12])
def test_layer_refuses_even_kernels(size: int) -> None:
    with pytest.raises(ValueError, match=f"kernel_size is {size}"):
        DepthwiseConv2d(4, size)


def test_layer_has_the_names_and_shapes_of_conv2d() -> None:
    layer = DepthwiseConv2d(6, 7, stride=2, dilation=3, bias=True)
    plain = torch.nn.Conv2d(6, 6, 7, stride=2, padding=9, dilation=3, groups=6)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2, 6, 11, 30)
    assert_close(layer(x), plain(x))


# In float32 and bfloat16 on a CPU, the convolution chooses the memory format and has gradients of its own.


@settings(max_examples=150)
@given(
    kernel=st.tuples(*[st.integers(0, 8).map(lambda half: 2 * half + 1)] * 2),
    size=st.tuples(st.integers(1, 17), st.integers(1, 17)),
    dilation=st.integers(1, 3),
    bias=st.booleans(),
    memory_format=st.sampled_from(FORMATS),
)
def test_equals_conv2d_on_onednn(
    kernel: tuple[int, int], size: tuple[int, int], dilation: int, bias: bool, memory_format: torch.memory_format
) -> None:
    exact = _tensors(kernel, size, bias)
    inputs = [None if t is None else t.detach().float().requires_grad_() for t in exact]
    x, weight, offset = inputs
    assert x is not None
    assert weight is not None
    stored = x.to(memory_format=memory_format)
    y = depthwise_conv2d(stored, weight, offset, dilation=dilation)
    assert y.stride() == stored.stride() or 1 in size
    wanted = _output_and_gradients(_reference(exact[0], exact[1], exact[2], 1, dilation), exact)
    for ours, theirs in zip(_output_and_gradients(y, inputs), wanted, strict=True):
        limit = 1e-5 * max(1.0, theirs.abs().max().item())
        assert_close(ours.double(), theirs, rtol=0, atol=limit)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kernel", "size", "dilation"), [(13, 14, 1), (31, 20, 1), (7, 14, 2), (3, 28, 5), (13, 7, 1)])
def test_gradients_in_other_dtypes(
    kernel: int, size: int, dilation: int, dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    x = torch.randn(2, 5, size, size).to(dtype, memory_format=memory_format).requires_grad_()
    weight = torch.randn(5, 1, kernel, kernel).to(dtype).requires_grad_()
    bias = torch.randn(5).to(dtype)
    grad = torch.randn_like(x)
    y = depthwise_conv2d(x, weight, bias, dilation=dilation)
    got = [y, *torch.autograd.grad(y, (x, weight), grad)]
    exact = [t.detach().double().requires_grad_() for t in (x, weight)]
    z = _reference(exact[0], exact[1], bias.double(), 1, dilation)
    wanted = [z, *torch.autograd.grad(z, exact, grad.double())]
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.dtype == dtype
        assert_close(ours.double(), theirs, rtol=0, atol=8 * torch.finfo(dtype).eps * theirs.abs().max().item())


def test_few_channels_wide_maps_and_kernels_in_bfloat16() -> None:
    """On some processors, PyTorch's own convolution of this channels_last map never returns."""
    x = torch.randn(1, 8, 4, 40).to(torch.bfloat16, memory_format=torch.channels_last).requires_grad_()
    for columns in (13, 15):
        weight = torch.randn(8, 1, 3, columns).bfloat16().requires_grad_()
        grad = torch.randn_like(x)
        y = depthwise_conv2d(x, weight)
        exact = [t.detach().double().requires_grad_() for t in (x, weight)]
        z = _reference(exact[0], exact[1], None, 1, 1)
        wanted = [z, *torch.autograd.grad(z, exact, grad.double())]
        for ours, theirs in zip([y, *torch.autograd.grad(y, (x, weight), grad)], wanted, strict=True):
            assert_close(ours.double(), theirs, rtol=0, atol=0.06 * theirs.abs().max().item())


@pytest.mark.parametrize(
    ("dtype", "kernel", "node"),
    [
        (torch.float64, 5, "ConvolutionBackward0"),  # oneDNN has no float64
        (torch.float32, 3, "ConvolutionBackward0"),  # small
        (torch.float32, 5, "_EagerDepthwiseConv2dBackward"),
        (torch.float32, 19, "_EagerDepthwiseConv2dBackward"),  # larger than the map
    ],
)
def test_what_is_left_to_pytorch(dtype: torch.dtype, kernel: int, node: str) -> None:
    x = torch.randn(2, 3, 9, 8, dtype=dtype, requires_grad=True)
    weight = torch.randn(3, 1, kernel, kernel, dtype=dtype, requires_grad=True)
    y = depthwise_conv2d(x, weight)
    assert y.grad_fn is not None
    assert y.grad_fn.name() == node


def test_a_kernel_of_13_columns_runs_with_15(monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []
    convolve = F.conv2d

    def recorded(x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        widths.append(weight.shape[3])
        return convolve(x, weight, *args, **kwargs)

    monkeypatch.setattr(F, "conv2d", recorded)
    x = torch.randn(1, 20, 14, 14)
    for size in (11, 13, 15):
        depthwise_conv2d(x.to(memory_format=torch.channels_last), torch.randn(20, 1, size, size))
    assert widths == [11, 15, 15]
    depthwise_conv2d(x, torch.randn(20, 1, 13, 13))
    assert widths[-1] == 13  # contiguous maps stay as they are


def test_second_derivatives() -> None:
    shapes = ((1, 2, 4, 5), (2, 1, 5, 3), (2,))
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    results = []
    for convolve, tensors in ((depthwise_conv2d, inputs), (lambda x, w, b: _reference(x, w, b, 1, 1), exact)):
        first = torch.autograd.grad(convolve(*tensors).square().sum(), tensors, create_graph=True)
        results.append(torch.autograd.grad(sum(gradient.square().sum() for gradient in first), tensors))
    for ours, theirs in zip(*results, strict=True):
        assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())


def test_deterministic_algorithms() -> None:
    x, weight = torch.randn(2, 3, 9, 9), torch.randn(3, 1, 7, 7).requires_grad_()
    torch.use_deterministic_algorithms(True)
    try:
        gradients = [torch.autograd.grad(depthwise_conv2d(x, weight).square().sum(), weight)[0] for _ in range(2)]
        assert_close(gradients[0], gradients[1], rtol=0, atol=0)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(("kernel", "dilation"), [(5, 1), (13, 1), (17, 1), (3, 2)])
def test_transforms_of_functions(kernel: int, dilation: int, memory_format: torch.memory_format) -> None:
    x = torch.stack([torch.randn(2, 3, 16, 16).to(memory_format=memory_format) for _ in range(4)])
    weight, bias = torch.randn(3, 1, kernel, kernel), torch.randn(3)

    def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return depthwise_conv2d(x, weight, bias, dilation=dilation)

    batched = torch.func.vmap(lambda x: convolve(x, weight, bias))(x)
    assert_close(batched, torch.stack([convolve(part, weight, bias) for part in x]), rtol=1e-4, atol=1e-4)
    tangents = torch.randn_like(x[0]), torch.randn_like(weight), torch.randn_like(bias)
    tangent = torch.func.jvp(convolve, (x[0], weight, bias), tangents)[1]
    wanted = convolve(tangents[0], weight) + convolve(x[0], tangents[1]) + tangents[2].view(-1, 1, 1)
    assert_close(tangent, wanted, rtol=1e-4, atol=1e-4)
    each = torch.func.vmap(torch.func.grad(lambda w, x: convolve(x, w).square().sum()), in_dims=(None, 0))(weight, x)
    weight.requires_grad_()
    for got, part in zip(each, x, strict=True):
        (expected,) = torch.autograd.grad(convolve(part, weight).square().sum(), weight)
        assert_close(got, expected, rtol=1e-4, atol=1e-3)


def test_compiled_whole_for_any_batch_and_size() -> None:
    layer = DepthwiseConv2d(20, 13, bias=True)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((2, 20, 9, 11), (3, 20, 20, 7)):
        x = torch.randn(shape)
        got = torch.autograd.grad(compiled(x).square().sum(), layer.weight)[0]
        wanted = torch.autograd.grad(layer(x).square().sum(), layer.weight)[0]
        assert_close(got, wanted, rtol=1e-4, atol=1e-3)


def test_multiplications_are_those_of_taps_that_meet_the_map() -> None:
    x, weight = torch.randn(2, 3, 4, 6), torch.randn(3, 1, 13, 13).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        depthwise_conv2d(x, weight).sum().backward()
    assert counter.get_total_flops() == 2 * (2 * 2 * 3 * 4 * 6 * 7 * 11)  # forward, weight gradient


def test_slices_of_a_map() -> None:
    wide = torch.randn(2, 6, 9, 9).to(memory_format=torch.channels_last)
    weight = torch.randn(3, 1, 5, 5)
    for x in (wide[:, :3], wide[:, ::2, 1:, ::2], wide.contiguous()[:, 1:4]):
        y = F.conv2d(x, weight, padding=2, groups=3)
        assert_close(depthwise_conv2d(x, weight), y, rtol=1e-5, atol=1e-5)
