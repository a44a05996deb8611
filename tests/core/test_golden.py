"""UniRepLKNet against values computed by the official code: names, shapes, logits, feature maps and gradients."""

import numpy as np
import pytest
import timm
import torch
from golden_values import GOLDEN, fill, golden_input, read_json, relative_difference, shapes_only, tiny
from torch import Tensor
from torch.nn import functional as F

import core

VARIANTS = ["a", "f", "p", "n", "t", "s", "b", "l", "xl"]


def _golden(variant: str, value: str) -> Tensor:
    with np.load(GOLDEN / f"unireplknet_{variant}.npz") as values:
        return torch.from_numpy(values[f"unireplknet_{variant}/{value}"])


def _filled(variant: str) -> core.UniRepLKNet:
    model = timm.create_model(f"unireplknet_{variant}")
    fill(model)
    return model


@pytest.mark.parametrize("form", ["train", "deploy"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_names_shapes_and_parameter_count_are_the_official_ones(variant: str, form: str) -> None:
    expected = read_json("state_dict_keys")[f"unireplknet_{variant}"]
    model = shapes_only(f"unireplknet_{variant}")
    if form == "deploy":
        with torch.device("meta"):
            model = timm.create_model(f"unireplknet_{variant}", inference_mode=True)
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == expected[f"keys_{form}"]
    assert sum(p.numel() for p in model.parameters()) == expected[f"params_{form}"]


@pytest.mark.parametrize("variant", ["a", "t"])
def test_logits_in_both_forms(variant: str) -> None:
    model, x, expected = _filled(variant).eval(), golden_input(2, 3, 96, 128), _golden(variant, "logits")
    with torch.no_grad():
        assert relative_difference(model(x), expected) < 1e-5
        assert relative_difference(core.reparameterize(model)(x), expected) < 1e-5


def test_feature_maps_with_norms() -> None:
    model = timm.create_model("unireplknet_a", num_classes=0, feature_norms=True).eval()
    fill(model)
    with torch.no_grad():
        maps = model.forward_intermediates(golden_input(2, 3, 70, 101), norm=True, intermediates_only=True)
    with np.load(GOLDEN / "unireplknet_a_features.npz") as expected:
        for stage, got in enumerate(maps):
            kept = got[:, ::8] if stage < 2 else got  # the file holds every 8th channel of the first two
            assert kept.shape == expected[f"a/map{stage}"].shape
            assert relative_difference(kept, torch.from_numpy(expected[f"a/map{stage}"])) < 1e-5


@pytest.mark.parametrize("variant", ["a", "t"])
def test_train_logits_loss_and_gradients(variant: str) -> None:
    model = _filled(variant).train()
    logits = model(golden_input(2, 3, 96, 128))
    loss = F.cross_entropy(logits, torch.tensor([1, 3]))
    loss.backward()
    assert relative_difference(logits.detach(), _golden(variant, "train_logits")) < 1e-5
    assert loss.item() == pytest.approx(_golden(variant, "loss").item(), rel=1e-5)
    expected = read_json(f"unireplknet_{variant}_grad_norms")
    got = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}
    # what cancels exactly, as a bias before a norm in train mode, leaves rounding errors alone
    assert got == pytest.approx(expected, rel=1e-3, abs=1e-6 * max(expected.values()))


def test_golden_values_depend_on_the_name_and_fill_everything() -> None:
    state = tiny().state_dict()
    assert not torch.equal(state["stages.0.0.norm.bias"], state["stages.0.0.pwconv2.2.bias"])
    assert 0.1 <= state["stages.0.0.gamma"].min() <= state["stages.0.0.gamma"].max() <= 0.5
