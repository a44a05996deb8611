"""Folding whole models: every variant, every dtype, inside other models, and what it must leave alone or refuse."""

import copy
import io
from typing import Any

import pytest
import timm
import torch
from golden_values import TINIES, TINY, TINY_REPLKNET, difference, filled, golden_input, relative_difference, tiny
from timm.utils import reparameterize_model
from timm.utils.model import freeze_batch_norm_2d, unfreeze_batch_norm_2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.testing import assert_close

import core
from core.backbones.replknet import ReparamLargeKernelConv
from core.errors import InputError
from core.layers import DepthwiseConv2d
from vision.task import ImageClassifier

both = pytest.mark.parametrize("net", TINIES)


def _batch_norms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


SMALL = {"dims": (8, 8, 12, 12), "num_classes": 10}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("unireplknet_a", {}),
        *[(f"unireplknet_{v}", SMALL) for v in ("f", "p", "n", "t", "s", "b", "l", "xl")],
        *[(f"replknet_{v}", SMALL) for v in ("31b", "31l", "xl")],
        (TINY, {}),
        (TINY_REPLKNET, {}),
        (TINY_REPLKNET, {"small_kernel": 0}),
        (TINY_REPLKNET, {"small_kernel_merged": True}),
        *[(net, {"feature_norms": True}) for net in TINIES],
        *[(net, {"num_classes": 0}) for net in TINIES],
        *[(net, {"global_pool": pool}) for net in TINIES for pool in ("max", "avgmax")],
        *[(net, {"global_pool": "", "num_classes": 0, "feature_norms": True}) for net in TINIES],
    ],
)
def test_every_variant(name: str, options: dict[str, Any]) -> None:
    model, x = tiny(name, **options), golden_input(1, 3, 64, 96)
    before = copy.deepcopy(model.state_dict())
    folded = core.reparameterize(model)
    assert difference(model, folded, x) < 1e-5
    assert not _batch_norms(folded)
    assert_close(model.state_dict(), before, rtol=0, atol=0)
    built = timm.create_model(name, **options | {"inference_mode": True}).eval()
    built.load_state_dict(folded.state_dict(), strict=True)
    assert difference(folded, built, x) == 0
    model.double()
    assert difference(model, core.reparameterize(model), x.double()) < 1e-12


@both
def test_maps_and_their_norms(net: str) -> None:
    model, x = tiny(net, feature_norms=True).double(), golden_input(2, 3, 64, 96).double()
    folded = core.reparameterize(model)
    for norm in (False, True):
        expected = model.forward_intermediates(x, norm=norm, intermediates_only=True)
        for got, wanted in zip(folded.forward_intermediates(x, norm=norm)[1], expected, strict=True):
            assert relative_difference(got, wanted) < 1e-12


@both
def test_last_norm_goes_into_the_classifier(net: str) -> None:
    model, x = tiny(net).double(), golden_input(2, 3, 64, 96).double()
    folded = core.reparameterize(model)
    assert relative_difference(folded(x), model(x)) < 1e-12
    with pytest.raises(InputError, match="part of its classifier, with no vector between them"):
        folded.forward_head(folded.forward_features(x), pre_logits=True)
    folded.reset_classifier(3)
    assert folded.forward_head(folded.forward_features(x), pre_logits=True).shape == (2, 32)
    folded = core.reparameterize(model)
    assert relative_difference(folded.head.weight, model.head.weight) > 0.1
    if net == TINY_REPLKNET:
        assert isinstance(folded.norm, nn.Identity)
    else:  # the official inference form has this norm
        assert folded.norm.weight.eq(1).all()
        assert folded.norm.bias.eq(0).all()


@both
def test_without_a_classifier_the_vector_stays(net: str) -> None:
    model, x = tiny(net, num_classes=0).double(), golden_input(2, 3, 64, 96).double()
    folded = core.reparameterize(model)
    assert relative_difference(folded(x), model(x)) < 1e-12
    if net == TINY:
        assert_close(folded.norm.state_dict(), model.norm.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("pool", ["max", "avgmax"])
def test_a_norm_before_a_maximum_becomes_a_scale_and_a_shift_of_the_map(pool: str) -> None:
    model, x = tiny(TINY_REPLKNET, global_pool=pool).double(), golden_input(2, 3, 64, 96).double()
    with torch.no_grad():
        model.norm.weight[::2] *= -1  # the maximum of a negated map is not the negated maximum
    folded = core.reparameterize(model)
    assert isinstance(folded.norm, DepthwiseConv2d)
    assert folded.norm.weight.shape == (32, 1, 1, 1)
    assert_close(folded.head.state_dict(), model.head.state_dict(), rtol=0, atol=0)
    assert difference(model, folded, x) < 1e-12


def test_small_kernels_first_and_the_norms_later() -> None:
    model, x = tiny(TINY_REPLKNET).double(), golden_input(2, 3, 64, 96).double()
    merged = model.merge_small_kernels()
    assert not model.stages[0].blocks[0].large_kernel.merged
    assert merged.stages[0].blocks[0].large_kernel.merged
    assert len(_batch_norms(merged)) == len(_batch_norms(model)) - 2 * sum(model.depths)
    assert difference(model, merged, x) < 1e-12
    assert_close(merged.merge_small_kernels().state_dict(), merged.state_dict(), rtol=0, atol=0)
    folded = core.reparameterize(merged)
    assert_close(folded.state_dict(), core.reparameterize(model).state_dict(), rtol=1e-12, atol=1e-14)
    with pytest.raises(RuntimeError, match="RepLKNet in train mode"):
        model.train().merge_small_kernels()


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_fold_in_double(net: str, dtype: torch.dtype) -> None:
    model = tiny(net, feature_norms=True).to(dtype)
    expected = core.reparameterize(copy.deepcopy(model).double()).to(dtype).state_dict()
    assert_close(core.reparameterize(model).state_dict(), expected, rtol=0, atol=0)


@both
def test_train_mode_is_refused_wherever_it_is(net: str) -> None:
    model = tiny(net)
    for part in [m for m in model.modules() if callable(getattr(m, "reparameterize", None))]:
        part.train()
        with pytest.raises(RuntimeError, match=r"in train mode.*Call model.eval\(\) first"):
            core.reparameterize(model)
        part.eval()
    with pytest.raises(RuntimeError, match=f"{type(model).__name__} in train mode"):
        core.reparameterize(model.train())


@both
def test_a_single_norm_in_train_mode_is_refused(net: str) -> None:
    model = tiny(net)
    for norm in _batch_norms(model)[::3]:
        norm.train()
        with pytest.raises(RuntimeError, match="BatchNorm2d in train mode"):
            core.reparameterize(model)
        norm.eval()


@both
def test_norms_frozen_after_eval_fold(net: str) -> None:
    model, x = tiny(net, feature_norms=True), golden_input(1, 3, 64, 96)
    expected = core.reparameterize(model).state_dict()
    frozen = freeze_batch_norm_2d(model)
    assert not frozen.training
    assert any(module.training for module in frozen.modules())  # timm's new norms start in training mode
    folded = core.reparameterize(frozen)
    assert difference(frozen, folded, x) < 1e-5
    assert_close(folded.state_dict(), expected, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="BatchNorm2d in train mode"):  # these use the statistics of the batch
        core.reparameterize(unfreeze_batch_norm_2d(frozen))


@both
def test_second_time_nothing_happens(net: str) -> None:
    once = core.reparameterize(tiny(net, feature_norms=True))
    twice = core.reparameterize(once)
    assert twice is not once
    assert_close(twice.state_dict(), once.state_dict(), rtol=0, atol=0)


@both
def test_timm_folds_to_the_same_outputs(net: str) -> None:
    model, x = tiny(net).double(), golden_input(2, 3, 64, 96).double()
    other = reparameterize_model(model)
    assert difference(model, other, x) < 1e-12
    assert _batch_norms(other) == ([other.norm] if net == TINY_REPLKNET else [])
    assert_close(other.norm.state_dict(), model.norm.state_dict(), rtol=0, atol=0)
    wrapped = reparameterize_model(nn.Sequential(model))
    assert_close(wrapped[0].state_dict(), core.reparameterize(model).state_dict(), rtol=0, atol=0)


class _Detector(nn.Module):
    """Two backbones, one of them frozen, a neck with large kernels, and a head with a norm that is not folded."""

    def __init__(self) -> None:
        super().__init__()
        self.first = timm.create_model(TINY, features_only=True, out_indices=(1, 3))
        self.second = timm.create_model(TINY_REPLKNET, features_only=True, out_indices=(1, 3)).requires_grad_(False)
        self.neck = nn.ModuleList([ReparamLargeKernelConv(16, 7), ReparamLargeKernelConv(32, 7, identity=True)])
        self.head = nn.Sequential(nn.Conv2d(32, 4, 3, padding=1), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        summed = [a + b for a, b in zip(self.first(x), self.second(x), strict=True)]
        maps = [layer(y) for layer, y in zip(self.neck, summed, strict=True)]
        return self.head(maps[1]).mean((2, 3)) + maps[0].mean((1, 2, 3))[:, None]


def test_inside_a_larger_model() -> None:
    model, x = filled(_Detector()).double(), golden_input(2, 3, 64, 64).double()
    folded = core.reparameterize(model)
    assert difference(model, folded, x) < 1e-12
    assert _batch_norms(folded) == [folded.head[1]]
    assert not any(p.requires_grad for p in folded.second.parameters())
    assert all(p.requires_grad for name, p in folded.named_parameters() if not name.startswith("second."))


@both
def test_inside_a_lightning_module(net: str) -> None:
    task, x = filled(ImageClassifier(net, num_classes=4)).double(), golden_input(2, 3, 64, 64).double()
    folded = core.reparameterize(task)
    assert isinstance(folded, ImageClassifier)
    assert difference(task, folded, x) < 1e-12
    assert not _batch_norms(folded)


@both
def test_synchronized_norms_fold(net: str) -> None:
    model = tiny(net)
    synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)).eval()
    assert any(isinstance(m, nn.SyncBatchNorm) for m in synchronized.modules())
    expected = core.reparameterize(model).state_dict()
    assert_close(core.reparameterize(synchronized).state_dict(), expected, rtol=0, atol=0)


@both
def test_frozen_parameters_stay_frozen_and_the_result_can_be_saved(net: str) -> None:
    model = tiny(net, feature_norms=True).requires_grad_(False)
    model.head.requires_grad_(True)
    folded = core.reparameterize(model)
    assert [n for n, p in folded.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]
    assert all(p.is_leaf for p in folded.parameters())
    buffer = io.BytesIO()
    torch.save(folded.state_dict(), buffer)
    buffer.seek(0)
    built = timm.create_model(net, inference_mode=True, feature_norms=True).eval()
    built.load_state_dict(torch.load(buffer), strict=True)
    assert difference(folded, built, golden_input(1, 3, 64, 64)) == 0


class _Variational(nn.Module):
    """A module whose method ``reparameterize`` does something else, as in variational autoencoders."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = tiny(TINY_REPLKNET, num_classes=0)

    def reparameterize(self, mean: Tensor, deviation: Tensor) -> Tensor:
        return mean + deviation

    def forward(self, x: Tensor) -> Tensor:
        return self.reparameterize(self.backbone(x), torch.ones(1))


class _OwnMethod(_Variational):
    def reparameterize(self, *values: Tensor) -> Any:  # type: ignore[override]
        return sum(values) if values else core.reparameterize(self)


@pytest.mark.parametrize("kind", [_Variational, _OwnMethod])
def test_other_methods_of_that_name(kind: type[nn.Module]) -> None:
    model, x = nn.Sequential(kind()).eval() if kind is _Variational else kind().eval(), golden_input(1, 3, 64, 64)
    folded = core.reparameterize(model)
    assert not [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
    assert relative_difference(folded(x), model(x)) < 1e-5


def test_classifiers_of_another_kind_keep_the_norm_before_them() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(nn.functional.normalize(x))

    model, x = tiny(TINY_REPLKNET), golden_input(2, 3, 64, 64)
    model.head = Scaled(model.num_features, 5)
    assert relative_difference(core.reparameterize(model)(x), model(x)) < 1e-5


@both
def test_compiled_model_folds(net: str) -> None:
    model, x = tiny(net), golden_input(1, 3, 64, 64)
    folded = core.reparameterize(torch.compile(model, backend="eager"))
    assert not _batch_norms(folded)
    assert relative_difference(folded(x), model(x)) < 1e-4
    torch._dynamo.reset()
