"""The decomposition and the two correlation layers against the formulas, written as loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from core.errors import InputError
from timeseries.corrformer import (
    AutoCorrelation,
    CausalConv1d,
    CausalFusion,
    CrossCorrelation,
    SeasonalNorm,
    SeriesDecomposition,
    lag_correlation,
    shift_in_time,
)

DOUBLE = {"rtol": 1e-5, "atol": 1e-6}


@settings(max_examples=25)
@given(length=st.integers(1, 40), reach=st.integers(0, 15), seed=st.integers(0, 99))
def test_trend_is_the_mean_of_the_window_with_repeated_ends(length: int, reach: int, seed: int) -> None:
    x = torch.randn(2, length, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    season, trend = SeriesDecomposition(2 * reach + 1)(x)
    for t in range(length):
        places = [min(max(s, 0), length - 1) for s in range(t - reach, t + reach + 1)]
        assert_close(trend[:, t], x[:, places].mean(dim=1))
    assert_close(season + trend, x)


@pytest.mark.parametrize("kernel_size", [0, 4, -3])
def test_a_moving_average_needs_a_middle(kernel_size: int) -> None:
    with pytest.raises(InputError, match="odd number"):
        SeriesDecomposition(kernel_size)


def test_seasonal_norm_has_no_level() -> None:
    norm, x = SeasonalNorm(6), torch.randn(2, 5, 6)
    torch.nn.init.normal_(norm.layernorm.weight)
    plain = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    plain = plain * norm.layernorm.weight + norm.layernorm.bias
    assert_close(norm(x), plain - plain.mean(dim=1, keepdim=True))


@settings(max_examples=25)
@given(length=st.integers(1, 17), lag=st.integers(-20, 20))
def test_correlation_and_shift_by_hand(length: int, lag: int) -> None:
    q, k = torch.randn(2, length, dtype=torch.float32), torch.randn(2, length, dtype=torch.float32)
    found = lag_correlation(q, k)
    for tau in range(length):
        assert_close(found[:, tau], sum(q[:, (t + tau) % length] * k[:, t] for t in range(length)), **DOUBLE)
    shifted = shift_in_time(q[None], torch.tensor([lag]))[0]
    assert torch.equal(shifted, torch.stack([q[:, (t + lag) % length] for t in range(length)], dim=1))


def _projected(layer: AutoCorrelation | CrossCorrelation, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key, value (B, L, D), the two last ones filled with zeros or cut after the projection."""
    parts = []
    for projection, source in ((layer.key_projection, memory), (layer.value_projection, memory)):
        full = torch.zeros_like(x)
        rows = projection(source)[:, : x.shape[1]]
        full[:, : rows.shape[1]] = rows
        parts.append(full)
    return layer.query_projection(x), parts[0], parts[1]


@pytest.mark.parametrize("memory_length", [4, 12, 15])
@pytest.mark.parametrize("factor", [1, 2])
def test_auto_correlation(memory_length: int, factor: int) -> None:
    layer, heads, length, dim = AutoCorrelation(8, 2, factor), 2, 12, 8
    x, memory = torch.randn(3, length, dim), torch.randn(3, memory_length, dim)
    q, k, v = _projected(layer, x, memory)
    y = torch.zeros_like(x)
    for b in range(3):
        for h in range(heads):
            own = slice(h * 4, h * 4 + 4)
            r = [
                sum(float((q[b, (t + tau) % length, own] * k[b, t, own]).mean()) for t in range(length))
                for tau in range(length)
            ]
            best = sorted(range(length), key=lambda tau: -r[tau])[: int(factor * math.log(length))]
            weights = torch.tensor([r[tau] for tau in best]).softmax(dim=0)
            for weight, tau in zip(weights, best, strict=True):
                for t in range(length):
                    y[b, t, own] += weight * v[b, (t + tau) % length, own]
    assert_close(layer(x, memory), layer.out_projection(y), rtol=1e-4, atol=1e-5)


def test_a_short_series_still_has_one_lag() -> None:
    assert AutoCorrelation(4, 2)(torch.randn(1, 2, 4), torch.randn(1, 2, 4)).shape == (1, 2, 4)


def _causal(conv: CausalConv1d, x: Tensor) -> Tensor:
    """(C, N) by loops over output channels and places, with the weight from its length and direction."""
    channels, nodes = x.shape
    y = torch.zeros_like(x)
    for o in range(channels):
        direction = conv.weight_v[o]
        weight = conv.weight_g[o] * direction / direction.square().sum().sqrt()
        for n in range(nodes):
            total = conv.bias[o] if conv.bias is not None else torch.zeros(())
            for j in range(3):
                source = n - (2 - j) * conv.dilation[0]
                if source >= 0:
                    total = total + (weight[:, j] * x[:, source]).sum()
            y[o, n] = total
    return y


def _fused(fusion: CausalFusion, x: Tensor) -> Tensor:
    for block in fusion.network:
        hidden = _causal(block.conv2, _causal(block.conv1, x).relu()).relu()
        x = (hidden + x).relu()
    return x


def test_causal_fusion_over_nodes() -> None:
    fusion = CausalFusion(4, layers=2).eval()
    for parameter in fusion.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 4, 7)
    assert [block.conv1.dilation[0] for block in fusion.network] == [1, 3]
    for b in range(2):
        assert_close(fusion(x)[b], _fused(fusion, x[b]), rtol=1e-4, atol=1e-3)


def test_new_causal_convolution_is_the_one_torch_would_make() -> None:
    torch.manual_seed(3)
    own = CausalConv1d(4, 3, 1)
    torch.manual_seed(3)
    plain = torch.nn.Conv1d(4, 4, 3)
    x = torch.randn(2, 4, 9)
    assert_close(own(x), plain(torch.nn.functional.pad(x, (2, 0))))
    assert set(own.state_dict()) == {"bias", "weight_g", "weight_v"}
    assert own.weight_g.shape == (4, 1, 1)


@pytest.mark.parametrize("memory_length", [3, 6])
@pytest.mark.parametrize("factor", [1, 2])
def test_cross_correlation(memory_length: int, factor: int) -> None:
    heads, length, dim, nodes = 2, 6, 4, 3
    layer = CrossCorrelation(dim, heads, length, factor=factor).eval()
    x, memory = torch.randn(2 * nodes, length, dim), torch.randn(2 * nodes, memory_length, dim)
    q, k, v = (part.view(2, nodes, length, dim) for part in _projected(layer, x, memory))
    y = torch.zeros(2, nodes, length, dim)
    for g in range(2):
        pivot = q[g].mean(dim=0)
        for h in range(heads):
            own = slice(h * 2, h * 2 + 2)
            r = torch.zeros(nodes, length)
            for n in range(nodes):
                for tau in range(length):
                    shifted = [pivot[(t + tau) % length, own] * k[g, n, t, own] for t in range(length)]
                    r[n, tau] = torch.stack(shifted).sum(dim=0).mean()
            for candidate in range(factor):
                lag = [int(r[n].argsort(descending=True)[candidate]) for n in range(nodes)]
                order = sorted(range(nodes), key=lambda n, lag=lag: length - lag[n])
                columns = []
                for n in order:
                    aligned = torch.stack([v[g, n, (t - lag[n]) % length, own] for t in range(length)], dim=1)
                    columns.append((aligned * r[n, lag[n]].sigmoid()).flatten())  # (E, L), E major
                fused = _fused(layer.inner_correlation["causal_fusion"], torch.stack(columns, dim=1))
                for place, n in enumerate(order):
                    block = fused[:, place].view(2, length)
                    for t in range(length):
                        y[g, n, t, own] += block[:, (t + lag[n]) % length] / factor
    expected = layer.out_projection(y.view(2 * nodes, length, dim))
    assert_close(layer(x, memory, nodes), expected, rtol=1e-4, atol=1e-5)


def test_heads_must_divide_the_channels() -> None:
    with pytest.raises(InputError, match="10 channels do not divide into 4 heads"):
        AutoCorrelation(10, 4)
