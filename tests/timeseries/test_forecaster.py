"""The forecaster for any series: its parts against plain formulas, its task's losses, and arguments that do not fit."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from lightning import Trainer
from small_series import TINY, waves, write_series
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

import core  # noqa: F401  (registers the backbones)
from core.errors import InputError
from timeseries import CSVSeries, ForecastTask, SeriesSpec, fold_by_period

LENGTHS = {"seq_len": 48, "pred_len": 12}


def _net(in_chans: int = 1, **kwargs: Any) -> ForecastTask:
    backbone = timm.create_model(TINY["backbone"], in_chans=in_chans, num_classes=0, **TINY["backbone_args"])
    net = ForecastTask(backbone, **{"channels": 4, "period": 12, "enlarge": 2, **LENGTHS, **kwargs}).eval()
    maps = net.feature_map
    for parameter in (net.head.projection.weight, net.head.projection.bias, maps.affine_weight, maps.affine_bias):
        if parameter is not None:
            nn.init.normal_(parameter, 0.5, 0.2)
    maps.set_scale([1.0, 2, 3, 4], [1.0, 0.5, 2, 3])
    return net


def _plain(net: ForecastTask, x: Tensor) -> Tensor:
    """One window (L, C), one group of channels after the other."""
    maps, head = net.feature_map, net.head
    z = (x - maps.mean) / maps.std
    level = {"none": torch.zeros(4), "last": z[-1]}.get(maps.normalize, z.mean(dim=0))
    spread = (z.var(dim=0, correction=0) + 1e-5).sqrt() if maps.normalize == "revin" else torch.ones(4)
    z = (z - level) / spread
    affine = maps.normalize == "revin"
    z = z * maps.affine_weight + maps.affine_bias if affine else z
    parts = []
    for first in range(0, 4, maps.group):
        own = z[:, first : first + maps.group].T[None]
        if maps.embedding is None:
            image = fold_by_period(own, maps.period)
            image = image.repeat_interleave(maps.enlarge, 2).repeat_interleave(maps.enlarge, 3)
        else:
            image = maps.embedding(own)[0].T.reshape(1, 1, *maps.map_size)
        features = net.backbone.forward_features(image).flatten()
        written = head.projection(F.layer_norm(features, features.shape, head.norm.weight, head.norm.bias))
        parts.append(written.view(maps.group, net.spec.pred_len, -1))
    y = torch.cat(parts).transpose(0, 1)
    y = y + (net.linear.weight @ z + net.linear.bias[:, None])[..., None] if net.linear is not None else y
    y = (y - maps.affine_bias[:, None]) / (maps.affine_weight[:, None] + 1e-10) if affine else y
    y = y * spread[:, None] + level[:, None]
    return y * maps.std[:, None] + maps.mean[:, None]


@pytest.mark.parametrize("normalize", ["none", "mean", "last", "revin"])
@pytest.mark.parametrize("kwargs", [{}, {"group": 2, "in_chans": 2}, {"layout": "embed", "embed_dim": 8}])
def test_forecast_by_hand(normalize: str, kwargs: dict[str, Any]) -> None:
    net, x = _net(normalize=normalize, **kwargs), 3 * torch.randn(2, 48, 4)
    assert_close(net(x), torch.stack([_plain(net, window)[..., 0] for window in x]), rtol=1e-4, atol=1e-4)


def test_quantiles_and_no_linear_path_by_hand() -> None:
    net, x = _net(quantiles=(0.1, 0.5, 0.9), linear=False), torch.randn(2, 48, 4)
    assert net(x).shape == (2, 12, 4, 3)
    plain = torch.stack([_plain(net, window) for window in x])
    assert (plain.diff(dim=-1) < 0).any()  # they cross, and are sorted
    assert_close(net(x), plain.sort(dim=-1).values, rtol=1e-4, atol=1e-4)
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
    assert_close(ForecastTask(backbone, channels=4, **LENGTHS).eval()(x), expected)


def test_every_parameter_learns() -> None:
    net = _net(normalize="revin").train()
    net(torch.randn(3, 48, 4)).square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize(("kwargs", "share"), [({}, 0.5), ({"dropout": 0.2}, 0.2), ({"dropout": 0.0}, 0.0)])
def test_training_drops_half_of_what_the_head_reads(kwargs: dict[str, Any], share: float) -> None:
    seen: list[Tensor] = []
    net = ForecastTask(**TINY, channels=4, **LENGTHS, **kwargs)
    net.train().head.projection.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net(torch.randn(64, 48, 4))
    assert [float((read == 0).float().mean()) for read in seen] == [pytest.approx(share, abs=0.03)]


def _task(**kwargs: Any) -> ForecastTask:
    task = ForecastTask(**{**TINY, "channels": 2, "period": 12, "enlarge": 2, **LENGTHS, **kwargs})
    task.feature_map.set_scale([5.0, 6.0], [2.0, 0.5])
    return task


@pytest.mark.parametrize("criterion", ["mse", "mae", "huber"])
def test_loss_is_that_of_standardized_channels(criterion: str) -> None:
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
    assert torch.equal(task.point_forecast(forecast), forecast[..., 1])


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"channels": 3, "group": 2}, "channels a multiple of group"),
        ({"quantiles": [0.9, 0.1]}, "rising levels between 0 and 1"),
        ({"quantiles": [0.5, 1.0]}, "rising levels between 0 and 1"),
        ({"normalize": "revni"}, "normalize='revni'; expected .* 'none', 'mean', 'last' or 'revin'$"),
        ({"layout": "embd"}, "layout='embd', normalize='none'; expected 'fold' or 'embed'"),
        ({"criterion": "rmse"}, "expected 'mse', 'mae' or 'huber'"),
        ({"seq_len": 0}, "seq_len=0"),
        ({"pred_len": 0}, "pred_len=0"),
        ({"channels": None}, "give channels, or spec=data.spec\\(\\)"),
        ({"backbone_args": {**TINY["backbone_args"], "in_chans": 3}}, "build it with in_chans=1"),
    ],
)
def test_arguments_that_do_not_fit_a_task(kwargs: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        _task(**kwargs)


def test_histories_that_do_not_fit() -> None:
    with pytest.raises(InputError, match=r"history is \(2, 47, 4\); the model was built for \(B, 48, 4\)"):
        _net()(torch.randn(2, 47, 4))


def test_what_describes_the_data_comes_from_the_spec() -> None:
    spec = SeriesSpec(channels=("a", "b"), seq_len=48, pred_len=12, period=12, mean=(5.0, 6.0), std=(2.0, 0.5))
    for given in (spec, spec.to_dict()):
        task = ForecastTask(**TINY, spec=given).eval()
        assert task.channel_names == ["a", "b"]
        assert task.feature_map.period == 12
        assert task.feature_map.mean.tolist() == [5.0, 6.0]
        assert task.feature_map.std.tolist() == [2.0, 0.5]
        assert task(torch.randn(3, 48, 2)).shape == (3, 12, 2)
        assert task.hparams["spec"] == spec.to_dict()


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"channels": 3}, r"the model has 3 channels and the data 2 \(a, b\); leave --model\.channels out"),
        ({"seq_len": 40}, r"the model has seq_len=40, the data 48; leave --model\.seq_len out and set --data\.seq_len"),
        ({"pred_len": 6}, r"the model has pred_len=6, the data 12; leave --model\.pred_len out"),
        ({"period": 7}, r"the model has period=7, the data 24"),
    ],
)
def test_arguments_that_contradict_the_data(kwargs: dict[str, int], text: str) -> None:
    spec = SeriesSpec(channels=("a", "b"), seq_len=48, pred_len=12)
    with pytest.raises(InputError, match=text):
        ForecastTask(**TINY, spec=spec, **kwargs)
    with pytest.raises(InputError, match=text.split(";")[0]):
        ForecastTask(**TINY, **{"channels": 2, "seq_len": 48, "pred_len": 12} | kwargs).use_spec(spec)


def test_a_task_that_knows_no_data_takes_names_and_scale_from_them() -> None:
    task = ForecastTask(**TINY, channels=2, **LENGTHS)
    assert task.channel_names == ["channel_0", "channel_1"]
    task.use_spec(SeriesSpec(channels=("a", "b"), **LENGTHS, mean=(1.0, 2.0), std=(3.0, 4.0)))
    assert task.channel_names == ["a", "b"]
    assert task.feature_map.std.tolist() == [3.0, 4.0]
    with pytest.raises(InputError, match="trained on the channels a, b, the data have a, c"):
        task.use_spec(SeriesSpec(channels=("a", "c"), **LENGTHS, mean=(1.0, 2.0), std=(3.0, 4.0)))


def test_the_scale_of_the_series_is_not_rounded_with_the_weights() -> None:
    task = _task().eval()
    task.feature_map.set_scale([1013.25, 6.0], [2.0, 0.5])
    task = task.to(torch.bfloat16)
    assert task.feature_map.mean[0] == 1013.25
    assert task(torch.randn(2, 48, 2)).dtype == torch.float32


def test_training_on_plain_loaders_measures_the_model_alone() -> None:
    x, y = torch.randn(8, 48, 2), torch.randn(8, 12, 2)
    loader = DataLoader(TensorDataset(x, y), batch_size=4)
    task = _task()
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, loader)
    (measured,) = trainer.validate(task, loader, verbose=False)
    with torch.no_grad():
        error = (task.eval()(x) - y) / torch.tensor([2.0, 0.5])
    assert measured == pytest.approx({"val_mse": float(error.square().mean()), "val_mae": float(error.abs().mean())})


def test_examples_are_spread_over_all_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    net = _net()
    monkeypatch.setattr(net, "batch_count", lambda split: 24)
    for batch in range(24):
        history = torch.full((2, 48, 4), float(batch))
        horizon = torch.zeros(2, 12, 4)
        net.keep_examples("val", history, horizon, horizon)
    assert [float(example.history[0]) for example in net.examples] == [0, 4, 8, 12, 16, 20]


@pytest.mark.parametrize(("channels", "pred_len"), [(1, 12), (2, 1), (1, 1)])
def test_one_channel_and_one_step(channels: int, pred_len: int, tmp_path: Path) -> None:
    """Training, metrics, pictures and predictions."""
    file = write_series(tmp_path / "a.csv", waves(300, channels, noise=0.1))
    sizes = {"seq_len": 48, "pred_len": pred_len, "period": 12}
    data = CSVSeries(str(file), num_workers=0, batch_size=16, **sizes)
    task = ForecastTask(TINY["backbone"], backbone_args=TINY["backbone_args"], spec=data.spec())
    trainer = Trainer(
        default_root_dir=tmp_path,
        max_epochs=1,
        limit_train_batches=2,
        accelerator="cpu",
        enable_progress_bar=False,
    )
    trainer.fit(task, data)
    assert trainer.callback_metrics["val_mse"].isfinite()

    rows = task.predict(file)
    assert len(rows) == pred_len
    assert set(rows[0]) == {"date", *data.spec().channels}
