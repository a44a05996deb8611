"""Both families against values computed by the official code: names, shapes, logits, feature maps and gradients."""

from typing import Any

import numpy as np
import pytest
import timm
import torch
from golden_values import GOLDEN, NAMES, TINIES, fill, golden_input, read_json, relative_difference, tiny
from torch import Tensor
from torch.nn import functional as F

import core
from core.backbones import LargeKernelNet

VARIANTS = [name for name in NAMES if name not in TINIES]
COMPUTED = ["unireplknet_a", "unireplknet_t", "replknet_31b"]
OTHER_NAMES = {"replknet_xl": "replknet_rxl"}


def _golden(name: str, value: str) -> Tensor:
    with np.load(GOLDEN / f"{name}.npz") as values:
        return torch.from_numpy(values[f"{name}/{value}"])


def _filled(name: str, **options: Any) -> LargeKernelNet:
    with torch.device("meta"):  # skips the initialization
        model: LargeKernelNet = timm.create_model(name, **options)
    fill(model.to_empty(device="cpu"))
    return model


@pytest.mark.parametrize("form", ["train", "deploy"])
@pytest.mark.parametrize("name", VARIANTS)
def test_names_shapes_and_parameter_count_are_the_official_ones(name: str, form: str) -> None:
    expected = read_json("state_dict_keys")[OTHER_NAMES.get(name, name)]
    deploy = "small_kernel_merged" if name.startswith("replknet") else "inference_mode"
    with torch.device("meta"):
        model = timm.create_model(name, **({deploy: True} if form == "deploy" else {}))
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == expected[f"keys_{form}"]
    assert sum(p.numel() for p in model.parameters()) == expected[f"params_{form}"]


@pytest.mark.parametrize("name", COMPUTED)
def test_logits_in_every_form(name: str) -> None:
    model, x, expected = _filled(name).eval(), golden_input(2, 3, 96, 128), _golden(name, "logits")
    with torch.no_grad():
        assert relative_difference(model(x), expected) < 1e-5
        if isinstance(model, core.RepLKNet):
            assert relative_difference(model.merge_small_kernels()(x), expected) < 1e-5
        assert relative_difference(core.reparameterize(model)(x), expected) < 1e-5


def test_feature_maps_with_norms() -> None:
    model = _filled("unireplknet_a", num_classes=0, feature_norms=True).eval()
    with torch.no_grad():
        maps = model.forward_intermediates(golden_input(2, 3, 70, 101), norm=True, intermediates_only=True)
    with np.load(GOLDEN / "unireplknet_a_features.npz") as expected:
        for stage, got in enumerate(maps):
            kept = got[:, ::8] if stage < 2 else got  # of the first two stages, the file has every 8th channel
            assert kept.shape == expected[f"a/map{stage}"].shape
            assert relative_difference(kept, torch.from_numpy(expected[f"a/map{stage}"])) < 1e-5


@pytest.mark.parametrize("name", COMPUTED)
def test_train_logits_loss_and_gradients(name: str) -> None:
    model = _filled(name).train()
    logits = model(golden_input(2, 3, 96, 128))
    loss = F.cross_entropy(logits, torch.tensor([1, 3]))
    loss.backward()
    rounding = 5 if name == "replknet_31b" else 1  # float64 differs from its float32 values by 2.2e-5
    assert relative_difference(logits.detach(), _golden(name, "train_logits")) < rounding * 1e-5
    assert loss.item() == pytest.approx(_golden(name, "loss").item(), rel=1e-5)
    expected = read_json(f"{name}_grad_norms")
    got = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}
    # a gradient that is 0 in exact arithmetic, as of a bias before a norm in train mode, has rounding errors only
    assert got == pytest.approx(expected, rel=rounding * 1e-3, abs=1e-6 * max(expected.values()))


def test_golden_values_depend_on_the_name_and_fill_everything() -> None:
    state = tiny().state_dict()
    assert not torch.equal(state["stages.0.0.norm.bias"], state["stages.0.0.pwconv2.2.bias"])
    assert 0.1 <= state["stages.0.0.gamma"].min() <= state["stages.0.0.gamma"].max() <= 0.5
