"""Embedding, tree, decoder layer and the whole global forecaster against plain formulas; names and counts."""

import math
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

import core  # noqa: F401  (registers the backbones)
from core.errors import InputError
from timeseries import GlobalArchitecture, GlobalForecaster, map_shape
from timeseries.corrformer import Corrformer, CorrformerLayer, MultiCorrelation, NodeEmbedding, SeriesDecomposition

TREE, STATIONS = (2, 3), 2
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def _backbone() -> nn.Module:
    return timm.create_model("test_unireplknet", in_chans=1, num_classes=0, layer_scale_init_value=0.5)


def _sizes(**kwargs: Any) -> GlobalArchitecture:
    sizes = {"tree": TREE, "stations": STATIONS, "d_model": 8, "n_heads": 2, "d_ff": 16, "moving_avg": 3}
    return GlobalArchitecture(**sizes | kwargs)


def _small(*, seq_len: int = 12, grad_checkpointing: bool = False, **sizes: Any) -> GlobalForecaster:
    net = GlobalForecaster(
        _backbone(),
        _sizes(**{"d_model": 32, "n_heads": 4, "moving_avg": 5} | sizes),
        seq_len=seq_len,
        label_len=4,
        pred_len=5,
        grad_checkpointing=grad_checkpointing,
    )
    for name, parameter in net.named_parameters():
        if "affine" in name:
            nn.init.normal_(parameter, 1.0, 0.3)
    net.set_stations(torch.randn(len(net.places) * STATIONS, 3))
    return net.eval()


def _inputs(batch: int = 2, stations: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    x = 50 + 10 * torch.randn(batch, 12, stations)
    return x, torch.rand(batch, 12, 4) - 0.5, torch.rand(batch, 9, 4) - 0.5


def test_embedding_is_a_sum_of_three() -> None:
    embedding = NodeEmbedding(_sizes(d_model=6)).eval()
    x, marks, places = torch.randn(2, 3, 5, 2), torch.randn(2, 5, 4), torch.randn(3, 6)
    weight = embedding.value_embedding["tokenConv"].weight
    calendar = embedding.temporal_embedding["embed"].weight
    location = embedding.national_embedding["location_embedding"]
    y = embedding(x, marks, places)
    for b in range(2):
        for n in range(3):
            for t in range(5):
                value = sum(weight[:, :, j] @ x[b, n, (t + j - 1) % 5] for j in range(3))
                expected = value + calendar @ marks[b, t] + location.weight @ places[n] + location.bias
                assert_close(y[b, n, t], expected, **CLOSE)


@pytest.mark.parametrize("tree", [(2, 3), (4,), (2, 1, 3)])
def test_tree_of_correlations(tree: tuple[int, ...]) -> None:
    leaves = math.prod(tree)
    layer = MultiCorrelation(_sizes(tree=tree), 6).eval()
    x, memory = torch.randn(2 * leaves, 6, 8), torch.randn(2 * leaves, 4, 8)
    expected = layer.auto_correlation(x, memory)
    for level in range(len(tree)):
        groups, below = math.prod(tree[: level + 1]), math.prod(tree[level + 1 :])
        averages = [part.view(2 * groups, below, *part.shape[1:]).mean(dim=1) for part in (x, memory)]
        answer = layer.cross_correlation(*averages, tree[level])
        for leaf in range(2 * leaves):
            expected[leaf] += answer[leaf // below] / len(tree)
    assert_close(layer(x, memory), expected, **CLOSE)


def test_the_leaves_part_is_dropped_twice() -> None:
    layer = MultiCorrelation(_sizes(dropout=0.5), 20)
    nn.init.zeros_(layer.cross_correlation.out_projection.weight)
    nn.init.zeros_(layer.cross_correlation.out_projection.bias)
    x, memory = torch.randn(60, 20, 8), torch.randn(60, 4, 8)
    whole, dropped = layer.eval()(x, memory), layer.train()(x, memory)
    assert float((dropped == 0).float().mean()) == pytest.approx(0.75, abs=0.03)
    kept = dropped != 0
    assert_close(dropped[kept], 4 * whole[kept], **CLOSE)


def test_samples_do_not_mix_in_the_decoder() -> None:
    decoder = Corrformer(_sizes(d_layers=2), 6).eval()
    tokens, memory, trend = torch.randn(12, 6, 8), torch.randn(12, 4, 8), torch.randn(12, 6, STATIONS)
    both = decoder(tokens, memory, trend)
    for sample in (slice(0, 6), slice(6, 12)):
        assert_close(both[sample], decoder(tokens[sample], memory[sample], trend[sample]), **CLOSE)


def _layer(layer: CorrformerLayer, s: Tensor, memory: Tensor, moving_avg: int) -> tuple[Tensor, Tensor]:
    decomposition = SeriesDecomposition(moving_avg)
    s, first = decomposition(s + layer.multi_correlation(s, s))
    s, second = decomposition(s + layer.cross_multi_correlation(s, memory))
    hidden = F.gelu(s @ layer.conv1.weight[:, :, 0].T) @ layer.conv2.weight[:, :, 0].T
    s, third = decomposition(s + hidden)
    total = first + second + third
    weight = layer.projection.weight
    increment = sum(total.roll(1 - j, dims=1) @ weight[:, :, j].T for j in range(3))
    return s, increment


def test_decoder_layer() -> None:
    layer = CorrformerLayer(_sizes(), 6).eval()
    s, memory = torch.randn(6, 6, 8), torch.randn(6, 4, 8)
    for found, expected in zip(layer(s, memory), _layer(layer, s, memory, 3), strict=True):
        assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("memory", ["tokens", "pooled"])
def test_whole_forecaster(memory: str) -> None:
    net = _small(memory=memory)
    x, marks, ahead = _inputs()
    y = torch.zeros(2, 5, 12)
    for b in range(2):  # one sample at a time, station by station where it matters
        mean, std = x[b].mean(dim=0), (x[b].var(dim=0, correction=0) + 1e-5).sqrt()
        weight, bias = net.affine_weight[0, 0].repeat(6), net.affine_bias[0, 0].repeat(6)
        z = (x[b] - mean) / std * weight + bias
        season, trend = (part[0] for part in SeriesDecomposition(5)(z[None]))
        trend = torch.cat([trend[-4:], z.mean(dim=0).expand(5, -1)])
        season = torch.cat([season[-4:], torch.zeros(5, 12)])
        nodes = [torch.stack([part[:, 2 * n : 2 * n + 2] for n in range(6)]) for part in (z, season, trend)]
        tokens = net.enc_embedding(nodes[0][None], marks[b][None], net.places)[0]
        maps = torch.stack([token.flatten().view(1, *net.map_size) for token in tokens])
        features = net.encoder.forward_features(maps)
        kept = features.permute(0, 2, 3, 1).flatten(1, 2)
        kept = net.encoder.norm(features.mean(dim=(2, 3)))[:, None] if memory == "pooled" else kept
        queries = net.dec_embedding(nodes[1][None], ahead[b][None], net.places)[0]
        s, increment = _layer(net.decoder.layers[0], queries, kept, 5)
        out = nodes[2] + increment + net.decoder.projection(net.decoder.norm(s))
        merged = torch.cat([out[n] for n in range(6)], dim=1)[-5:]
        y[b] = (merged - bias) / (weight + 1e-10) * std + mean
    assert_close(net(x, marks, ahead), y, rtol=1e-3, atol=1e-3)


def test_stations_are_standardized_and_laid_out_by_node() -> None:
    net, places = _small(), torch.randn(12, 3) * 50 + 7
    net.set_stations(places)
    plain = (places - places.mean(dim=0)) / places.std(dim=0, correction=0)
    assert_close(net.places, torch.stack([plain[2 * n : 2 * n + 2].flatten() for n in range(6)]))
    assert "places" not in net.state_dict()


@pytest.mark.parametrize(("length", "dim", "shape"), [(48, 768, (192, 192)), (48, 64, (32, 96)), (7, 5, (5, 7))])
def test_factorisation_of_the_map(length: int, dim: int, shape: tuple[int, int]) -> None:
    assert map_shape(length, dim) == shape


def test_any_factorisation_runs() -> None:
    for size in ((8, 48), (12, 32), (1, 384)):
        assert _small(map_size=size)(*_inputs()).shape == (2, 5, 12)
    with pytest.raises(InputError, match=r"a map of \(10, 10\) does not hold 12 x 32 = 384 values"):
        _small(map_size=(10, 10))


def test_published_size_and_names() -> None:
    with torch.device("meta"):
        kernels = [3, 13, [13, 3, 3] * 9, 11]
        backbone = timm.create_model("unireplknet_s", in_chans=1, num_classes=0, kernel_sizes=kernels)
        net = GlobalForecaster(backbone)
    assert sum(p.numel() for p in net.parameters()) == 131_979_993
    assert sum(p.numel() for p in net.encoder.parameters()) == 55_520_952
    assert net.map_size == (192, 192)
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items() if not name.startswith("encoder.")}
    expected = {"affine_weight": (1, 1, 11), "affine_bias": (1, 1, 11)}
    for part in ("enc", "dec"):
        expected |= {
            f"{part}_embedding.national_embedding.location_embedding.weight": (768, 33),
            f"{part}_embedding.national_embedding.location_embedding.bias": (768,),
            f"{part}_embedding.value_embedding.tokenConv.weight": (768, 11, 3),
            f"{part}_embedding.temporal_embedding.embed.weight": (768, 4),
        }
    for part in ("multi_correlation", "cross_multi_correlation"):
        for kind in ("auto_correlation", "cross_correlation"):
            for name in ("query", "key", "value", "out"):
                place = f"decoder.layers.0.{part}.{kind}.{name}_projection"
                expected |= {f"{place}.weight": (768, 768), f"{place}.bias": (768,)}
        inner = f"decoder.layers.0.{part}.cross_correlation.inner_correlation.causal_fusion.network.0"
        for conv in ("conv1", "conv2", "net.0", "net.4"):
            shape = {"bias": (2304,), "weight_g": (2304, 1, 1), "weight_v": (2304, 2304, 3)}
            expected |= {f"{inner}.{conv}.{name}": size for name, size in shape.items()}
    expected |= {
        "decoder.layers.0.conv1.weight": (2048, 768, 1),
        "decoder.layers.0.conv2.weight": (768, 2048, 1),
        "decoder.layers.0.projection.weight": (11, 768, 3),
        "decoder.norm.layernorm.weight": (768,),
        "decoder.norm.layernorm.bias": (768,),
        "decoder.projection.weight": (11, 768),
        "decoder.projection.bias": (11,),
    }
    assert shapes == expected


def test_both_names_of_a_convolution_are_one_tensor() -> None:
    net = _small()
    state = {name: torch.randn_like(value) for name, value in net.state_dict().items() if value.is_floating_point()}
    for name in [name for name in state if ".net." in name]:
        state[name] = state[name.replace(".net.0.", ".conv1.").replace(".net.4.", ".conv2.")]
    state |= {name: value for name, value in net.state_dict().items() if name not in state}
    net.load_state_dict(state, strict=True)
    for name, value in net.state_dict().items():
        assert torch.equal(value, state[name])


@pytest.mark.parametrize("memory", ["tokens", "pooled"])
def test_checkpointing_changes_nothing_and_every_parameter_learns(memory: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        net = _small(memory=memory, grad_checkpointing=checkpointing).train()
        for module in net.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        torch.manual_seed(1)
        net(*_inputs()).square().mean().backward()
        gradients.append({name: p.grad for name, p in net.named_parameters() if p.requires_grad})
    assert not [name for name, gradient in gradients[0].items() if gradient is None]
    for name, gradient in gradients[0].items():
        assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"tree": ()}, r"tree=\(\)"),
        ({"label_len": 13}, "label_len from 0 to seq_len"),
        ({"memory": "pool"}, r"^memory='pool'; expected 'tokens' or 'pooled'$"),
        ({"d_model": 48}, "last map has 32 channels, d_model is 48"),
    ],
)
def test_arguments_that_do_not_fit(kwargs: dict[str, Any], text: str) -> None:
    lengths = {"seq_len": 12, "label_len": 4, "pred_len": 5}
    lengths |= {name: kwargs.pop(name) for name in ("label_len",) if name in kwargs}
    with pytest.raises(InputError, match=text):
        GlobalForecaster(_backbone(), _sizes(**{"d_model": 32, "n_heads": 4} | kwargs), **lengths)


def test_data_that_do_not_fit_the_tree() -> None:
    net = _small()
    with pytest.raises(InputError, match=r"the data have 13 stations; the tree has 6 leaves of 2 stations, 12 in all"):
        net(*_inputs(stations=13))
    with pytest.raises(InputError, match=r"coordinates of shape \(12, 2\)"):
        net.set_stations(torch.randn(12, 2))
    with pytest.raises(InputError, match="history has 12 steps; the net was built for seq_len=16"):
        _small(seq_len=16)(*_inputs())
