"""Products over channels: the same numbers as the layers whose names and weights they have."""

import pytest
import torch
from torch import nn

from core.layers.pointwise import PointwiseConv2d, PointwiseLinear


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (5, 4)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_pointwise_convolution_is_a_convolution(size: tuple[int, int], memory_format: torch.memory_format) -> None:
    ours, plain = PointwiseConv2d(6, 10).double(), nn.Conv2d(6, 10, 1).double()
    plain.load_state_dict(ours.state_dict())
    maps = torch.randn(3, 6, *size, dtype=torch.float64).to(memory_format=memory_format)
    slope = torch.randn(3, 10, *size, dtype=torch.float64)
    results = []
    for conv in (ours, plain):
        x = maps.clone().requires_grad_()
        y = conv(x)
        results.append([y, *torch.autograd.grad(y, [x, conv.weight, conv.bias], slope)])
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layer", [PointwiseConv2d(6, 10), PointwiseLinear(6, 10)], ids=["conv", "linear"])
def test_its_file_for_other_programs_has_the_plain_layer(layer: nn.Module) -> None:
    x = torch.randn(2, 6, 1, 1) if isinstance(layer, nn.Conv2d) else torch.randn(2, 4, 4, 6)
    names = [str(node.target) for node in torch.export.export(layer, (x,)).graph.nodes]
    wanted = "aten.conv2d.default" if isinstance(layer, nn.Conv2d) else "aten.linear.default"
    assert wanted in names
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))


def test_a_convolution_of_one_pixel_follows_autocast_and_compiles() -> None:
    conv, x = PointwiseConv2d(6, 10), torch.randn(2, 6, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(x).dtype == torch.bfloat16
    assert torch._dynamo.explain(conv)(x).graph_break_count == 0
