"""The depthwise convolution against ``F.conv2d``: values, gradients, memory formats, tracing, refusals."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

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
    slopes = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    return [y.detach(), *torch.autograd.grad((y * slopes).sum(), [t for t in inputs if t is not None])]


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
