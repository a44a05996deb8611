"""What a model costs in each of its forms; measuring leaves the model as it was."""

import itertools
import re
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import core
from core.analysis import Cost, model_cost
from core.analysis.cost import activation_peak, cost_figure, count_macs, saved_for_backward
from core.errors import InputError

Size = tuple[int, int, int]


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["test_unireplknet", "test_replknet"])
def test_two_forms_of_a_net_that_folds(name: str) -> None:
    model = timm.create_model(name).eval()
    train, inference = model_cost(model, (3, 64, 48), name="mine", rounds=0)
    assert [cost.form for cost in (train, inference)] == ["train", "inference"]
    assert {(cost.model, cost.input_size, cost.images_per_second) for cost in (train, inference)} == {
        ("mine", (3, 64, 48), None)
    }
    folded = core.reparameterize(model)
    assert (train.parameters, inference.parameters) == (_parameters(model), _parameters(folded))
    assert (train.macs, inference.macs) == (count_macs(model, (3, 64, 48)), count_macs(folded, (3, 64, 48)))
    assert (train.saved_bytes, inference.saved_bytes) == (saved_for_backward(model, (3, 64, 48)), None)
    assert train.peak_bytes == activation_peak(model, (3, 64, 48))
    assert inference.parameters < train.parameters
    assert inference.macs < train.macs


def test_one_form_of_a_net_that_does_not_fold() -> None:
    (cost,) = model_cost(timm.create_model("test_resnet").eval(), (3, 64, 64), rounds=0)
    assert (cost.model, cost.form, cost.parameters) == ("ResNet", "train", 469_688)
    assert cost.saved_bytes is not None
    assert cost.saved_bytes > cost.peak_bytes > 3 * 64 * 64 * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_speed_is_measured_and_the_model_stays_as_it_was(dtype: torch.dtype) -> None:
    model = timm.create_model("test_unireplknet").to(dtype).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    costs = model_cost(model, (3, 32, 32), batch_size=2, rounds=1)
    assert all(cost.images_per_second is not None and cost.images_per_second > 0 for cost in costs)
    assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert not any(module.training for module in model.modules())
    assert all(parameter.grad is None and parameter.device.type == "cpu" for parameter in model.parameters())


def test_forms_take_turns_on_batches_of_the_size_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = timm.create_model("test_replknet").eval(), []
    forward = type(model).forward

    def counted(self: nn.Module, x: Tensor) -> Tensor:
        if x.device.type == "cpu":
            seen.append((len(list(self.parameters())), tuple(x.shape), torch.is_grad_enabled()))
        return forward(self, x)

    monkeypatch.setattr(type(model), "forward", counted)
    model_cost(model, (3, 32, 40), batch_size=3, rounds=2)
    sizes = [len(list(form.parameters())) for form in (model, core.reparameterize(model))]
    assert {(shape, grad) for _, shape, grad in seen} == {((3, 3, 32, 40), False)}
    turns = [size for size, _ in itertools.groupby(size for size, _, _ in seen)]
    assert turns == 3 * sizes  # once to warm up, and two rounds


def test_bytes_kept_for_the_backward_pass_are_those_of_one_image() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()).eval()
    assert saved_for_backward(net, (3, 10, 12)) == 4 * (3 + 8) * 10 * 12  # input of the one, output of the other
    assert saved_for_backward(net.half(), (3, 10, 12)) == 2 * (3 + 8) * 10 * 12


def test_training_mode_is_refused() -> None:
    with pytest.raises(InputError, match=r"costs are those of eval mode; call model\.eval\(\) first"):
        model_cost(timm.create_model("test_resnet"), (3, 32, 32), rounds=0)


@pytest.mark.parametrize("rounds", [0, 1])
@pytest.mark.parametrize(
    ("name", "size"), [("test_resnet", (1, 32, 32)), ("test_vit", (3, 50, 50)), ("test_unireplknet", (4, 32, 32))]
)
def test_inputs_that_the_model_does_not_take(name: str, size: Size, rounds: int) -> None:
    with pytest.raises(InputError, match=rf"does not take an input of {re.escape(str(size))} \(.*\); choose another"):
        model_cost(timm.create_model(name).eval(), size, rounds=rounds)


def test_speed_of_a_model_without_parameters() -> None:
    (cost,) = model_cost(nn.ReLU().eval(), (3, 8, 8), rounds=1)
    assert cost.images_per_second is not None


def _cost(model: str, form: Any, macs: float, speed: float | None) -> Cost:
    return Cost(model, form, (3, 8, 8), 10**6, int(macs * 1e9), None, 0, speed)


def test_figure_has_an_arrow_from_each_form_to_the_other() -> None:
    costs = [_cost("a", "train", 2, 50), _cost("a", "inference", 1.5, 80), _cost("b", "train", 4, 30)]
    figure = cost_figure(costs, "input 8 x 8")
    figure.canvas.draw()
    (axes,) = figure.axes
    assert axes.get_title() == "input 8 x 8"
    points = [tuple(collection.get_offsets()[0]) for collection in axes.collections]
    assert points == [(2, 50), (1.5, 80), (4, 30)]
    arrows = [text for text in axes.texts if text.arrow_patch is not None]
    assert [(text.xy, (text._x, text._y)) for text in arrows] == [((1.5, 80), (2, 50))]
    labels = [text.get_text() for text in axes.texts if text.arrow_patch is None]
    assert labels == ["a\ntrain", "a\ninference", "b\ntrain"]


def test_figure_draws_dollar_signs() -> None:
    figure = cost_figure([_cost("net=$x^$.pth", "train", 2, 50)], "input of $x^$")
    figure.canvas.draw()  # matplotlib would refuse the formula '$x^$'
    (axes,) = figure.axes
    assert axes.texts[0].get_text().replace(r"\$", "$") == "net=$x^$.pth\ntrain"
    assert axes.get_title().replace(r"\$", "$") == "input of $x^$"
