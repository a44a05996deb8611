"""The forecaster for any series: its parts against plain formulas, its task's losses, and arguments that do not fit."""

from typing import Any

import pytest
import timm
import torch
from small_series import TINY
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

import core  # noqa: F401  (registers the backbones)
from core.errors import InputError
from timeseries import Forecaster, ForecastTask, fold_by_period

LENGTHS = {"seq_len": 48, "pred_len": 12}


def _net(in_chans: int = 1, **kwargs: Any) -> Forecaster:
    backbone = timm.create_model(TINY["backbone"], in_chans=in_chans, num_classes=0, **TINY["backbone_args"])
    net = Forecaster(backbone, **{"channels": 4, "period": 12, "enlarge": 2, **LENGTHS, **kwargs}).eval()
    for parameter in (net.head.weight, net.head.bias, net.affine_weight, net.affine_bias):
        if parameter is not None:
            nn.init.normal_(parameter, 0.5, 0.2)
    net.set_scale(torch.tensor([1.0, 2, 3, 4]), torch.tensor([1.0, 0.5, 2, 3]))
    return net


def _plain(net: Forecaster, x: Tensor) -> Tensor:
    """One window (L, C), one group of channels after the other."""
    z = (x - net.mean) / net.std
    level = {"none": torch.zeros(4), "last": z[-1]}.get(net.normalize, z.mean(dim=0))
    spread = (z.var(dim=0, correction=0) + 1e-5).sqrt() if net.normalize == "revin" else torch.ones(4)
    z = (z - level) / spread
    affine = net.normalize == "revin"
    z = z * net.affine_weight + net.affine_bias if affine else z
    parts = []
    for first in range(0, 4, net.group):
        own = z[:, first : first + net.group].T[None]
        if net.embedding is None:
            maps = fold_by_period(own, net.period)
            maps = maps.repeat_interleave(net.enlarge, 2).repeat_interleave(net.enlarge, 3)
        else:
            maps = net.embedding(own)[0].T.reshape(1, 1, *net.map_size)
        features = net.encoder.forward_features(maps).flatten()
        written = net.head(F.layer_norm(features, features.shape, net.norm.weight, net.norm.bias))
        parts.append(written.view(net.group, net.pred_len, -1))
    y = torch.cat(parts).transpose(0, 1)
    y = y + (net.linear.weight @ z + net.linear.bias[:, None])[..., None] if net.linear is not None else y
    y = (y - net.affine_bias[:, None]) / (net.affine_weight[:, None] + 1e-10) if affine else y
    y = y * spread[:, None] + level[:, None]
    return y * net.std[:, None] + net.mean[:, None]


@pytest.mark.parametrize("normalize", ["none", "mean", "last", "revin"])
@pytest.mark.parametrize("kwargs", [{}, {"group": 2, "in_chans": 2}, {"layout": "embed", "embed_dim": 8}])
def test_forecast_by_hand(normalize: str, kwargs: dict[str, Any]) -> None:
    net, x = _net(normalize=normalize, **kwargs), 3 * torch.randn(2, 48, 4)
    assert_close(net(x), torch.stack([_plain(net, window)[..., 0] for window in x]), rtol=1e-4, atol=1e-4)


def test_quantiles_and_no_linear_path_by_hand() -> None:
    net, x = _net(quantiles=(0.1, 0.5, 0.9), linear=False), torch.randn(2, 48, 4)
    assert net(x).shape == (2, 12, 4, 3)
    assert_close(net(x), torch.stack([_plain(net, window) for window in x]), rtol=1e-4, atol=1e-4)
    assert _net(quantiles=(0.5,))(x).shape == (2, 12, 4, 1)


def test_independent_channels_know_nothing_of_each_other() -> None:
    net, x = _net(), torch.randn(2, 48, 4)
    other = x.clone()
    other[..., 2] += 5
    changed = (net(other) - net(x)).abs().amax(dim=(0, 1)) > 1e-4
    assert changed.tolist() == [False, False, True, False]


def test_training_begins_with_the_mean_of_the_history() -> None:
    backbone = timm.create_model(TINY["backbone"], in_chans=1, num_classes=0, **TINY["backbone_args"])
    x = torch.randn(2, 48, 4)
    expected = x.mean(dim=1, keepdim=True).expand(-1, 12, -1)
    assert_close(Forecaster(backbone, channels=4, **LENGTHS).eval()(x), expected)


def test_every_parameter_learns() -> None:
    net = _net(normalize="revin").train()
    net(torch.randn(3, 48, 4)).square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize(("kwargs", "share"), [({}, 0.5), ({"dropout": 0.2}, 0.2), ({"dropout": 0.0}, 0.0)])
def test_training_drops_half_of_what_the_head_reads(kwargs: dict[str, Any], share: float) -> None:
    seen: list[Tensor] = []
    for net in (_net(**kwargs), ForecastTask(**TINY, channels=4, **LENGTHS, **kwargs).net):
        net.train().head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        net(torch.randn(64, 48, 4))
    assert [float((read == 0).float().mean()) for read in seen] == [pytest.approx(share, abs=0.03)] * 2


def _task(**kwargs: Any) -> ForecastTask:
    task = ForecastTask(**{**TINY, "channels": 2, "period": 12, "enlarge": 2, **LENGTHS, **kwargs})
    task.net.set_scale(torch.tensor([5.0, 6.0]), torch.tensor([2.0, 0.5]))
    return task


@pytest.mark.parametrize("criterion", ["mse", "mae", "huber"])
def test_loss_is_that_of_standardised_channels(criterion: str) -> None:
    forecast, y = torch.randn(3, 12, 2), torch.randn(3, 12, 2)
    error = ((forecast - y) / torch.tensor([2.0, 0.5])).flatten().tolist()
    single = {
        "mse": lambda e: e**2,
        "mae": abs,
        "huber": lambda e: e**2 / 2 if abs(e) < 1 else abs(e) - 0.5,
    }[criterion]
    assert float(_task(criterion=criterion).loss(forecast, y)) == pytest.approx(sum(map(single, error)) / len(error))


def test_quantile_loss_and_the_middle_one() -> None:
    task = _task(quantiles=[0.1, 0.45, 0.9])
    forecast, y = torch.randn(1, 12, 2, 3), torch.randn(1, 12, 2)
    losses = []
    for t in range(12):
        for c, std in enumerate((2.0, 0.5)):
            for q, level in enumerate((0.1, 0.45, 0.9)):
                above = float(y[0, t, c] - forecast[0, t, c, q]) / std
                losses.append(level * above if above > 0 else (level - 1) * above)
    assert float(task.loss(forecast, y)) == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert torch.equal(task.middle(forecast), forecast[..., 1])


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"channels": 3, "group": 2}, "channels a multiple of group"),
        ({"quantiles": [0.9, 0.1]}, "rising levels between 0 and 1"),
        ({"quantiles": [0.5, 1.0]}, "rising levels between 0 and 1"),
        ({"normalize": "revni"}, "normalize='revni'; expected .* 'none', 'mean', 'last' or 'revin'$"),
        ({"layout": "embd"}, "layout='embd', normalize='none'; expected 'fold' or 'embed'"),
        ({"criterion": "rmse"}, "expected 'mse', 'mae' or 'huber'"),
        ({"layer_decay": 0.5}, "no decay by layer"),
        ({"backbone_args": {**TINY["backbone_args"], "in_chans": 3}}, "build it with in_chans=1"),
    ],
)
def test_arguments_that_do_not_fit_a_task(kwargs: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        _task(**kwargs)


def test_histories_and_scales_that_do_not_fit() -> None:
    with pytest.raises(InputError, match=r"history is \(2, 47, 4\); the net was built for \(B, 48, 4\)"):
        _net()(torch.randn(2, 47, 4))
    with pytest.raises(InputError, match=r"has 4 channels and the data 3; set --model\.channels 3"):
        _net().set_scale(torch.zeros(3), torch.ones(3))
