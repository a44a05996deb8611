"""The fusion of a signal with a context: against plainly written references in float64, compiled, and exported."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from core.errors import InputError
from core.export import export_model
from core.layers.asymmetric import AsymmetricFusion, correlate

MODES = ("dynamic", "static", "product", "cross_attention")
DTYPE = torch.float64


def _formula(x_LD: Tensor, y_KD: Tensor) -> Tensor:
    """The paper's formula for one sample, element by element, with indices from 1 and zeros outside x."""
    length, taps, before = len(x_LD), len(y_KD), len(y_KD) // 2
    rows = []
    for i in range(1, length + 1):
        terms = [torch.zeros_like(x_LD[0])]
        for k in range(1, taps + 1):
            place = i + k - 1 - before  # x with L2 // 2 zeros before it
            if 1 <= place <= length:
                terms.append(x_LD[place - 1] * y_KD[k - 1])
        rows.append(torch.stack(terms).sum(0))
    return torch.stack(rows)


def _formula_2d(x_CHW: Tensor, y_Chw: Tensor) -> Tensor:
    _, height, width = x_CHW.shape
    z = torch.zeros_like(x_CHW)
    for i in range(height):
        for j in range(width):
            for k in range(y_Chw.shape[1]):
                for m in range(y_Chw.shape[2]):
                    row, column = i + k - y_Chw.shape[1] // 2, j + m - y_Chw.shape[2] // 2
                    if 0 <= row < height and 0 <= column < width:
                        z[:, i, j] += x_CHW[:, row, column] * y_Chw[:, k, m]
    return z


@pytest.mark.parametrize(("length", "taps"), [(7, 1), (7, 2), (7, 3), (6, 6), (5, 12), (4, 13), (1, 4)])
def test_correlation_of_sequences_is_the_formula_with_its_gradients(length: int, taps: int) -> None:
    x = torch.randn(2, length, 3, dtype=DTYPE, requires_grad=True)
    y = torch.randn(2, taps, 3, dtype=DTYPE, requires_grad=True)
    got = correlate(x.transpose(1, 2).unsqueeze(2), y.transpose(1, 2).unsqueeze(2)).squeeze(2).transpose(1, 2)
    expected = torch.stack([_formula(*pair) for pair in zip(x, y, strict=True)])
    assert_close(got, expected, rtol=1e-12, atol=1e-12)

    upstream = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, (x, y), upstream)
    assert_close(torch.autograd.grad(got, (x, y), upstream), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (2, 5), (4, 4), (9, 8)])
def test_correlation_of_maps_is_the_formula(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, 5, 6, dtype=DTYPE)
    y = torch.randn(2, 3, *size, dtype=DTYPE)
    expected = torch.stack([_formula_2d(*pair) for pair in zip(x, y, strict=True)])
    assert_close(correlate(x, y), expected, rtol=1e-12, atol=1e-12)
    assert_close(correlate(x.float(), y.float()), expected.float(), rtol=1e-4, atol=1e-4)


def test_gradients_of_float32_are_those_of_float64() -> None:
    x, y = torch.randn(2, 4, 8, 9), torch.randn(2, 4, 5, 7)
    grads = []
    for dtype in (torch.float32, DTYPE):
        inputs = [tensor.to(dtype, copy=True).requires_grad_() for tensor in (x, y)]
        (correlate(*inputs) ** 2).sum().backward()
        grads.append([tensor.grad.double() for tensor in inputs])  # type: ignore[union-attr]
    assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-3)


def _sequences(model: AsymmetricFusion, x: Tensor, y: Tensor) -> Tensor:
    """A fusion of sequences written plainly, without padding."""
    a, b = model.project_x(model.norm_x(x)), model.project_y(model.norm_y(y))
    dim = model.dim
    if model.mode == "dynamic":
        z = torch.stack([_formula(*pair) for pair in zip(a, b, strict=True)]) / b.shape[1] ** 0.5
    elif model.mode == "static":
        kernel_x, kernel_y = model.theta_x.weight[:, :, 2], model.theta_y.weight[:, :, 2]
        pooled = F.adaptive_avg_pool1d(b.transpose(1, 2), 5)
        z = F.conv1d(a.transpose(1, 2), kernel_x, model.theta_x.bias, padding=2) + F.conv1d(pooled, kernel_y)
        z = z.relu().transpose(1, 2)
    elif model.mode == "product":
        z = a * b.mean(1, keepdim=True)
    else:
        width = dim // model.heads
        heads = []
        for head in range(model.heads):
            part = slice(head * width, (head + 1) * width)
            key, value = b[..., :dim][..., part], b[..., dim:][..., part]
            heads.append((a[..., part] @ key.transpose(1, 2) / width**0.5).softmax(-1) @ value)
        z = torch.cat(heads, dim=-1)
    return x + model.project_out(z)


@pytest.mark.parametrize("mode", MODES)
def test_layer_is_its_reference_with_the_gradients_of_all_weights(mode: Any) -> None:
    model = AsymmetricFusion(6, mode, context_dim=4, heads=2).to(DTYPE)
    x = torch.randn(2, 7, 6, dtype=DTYPE)
    y = torch.randn(2, 8, 4, dtype=DTYPE)
    got, expected = model(x, y), _sequences(model, x, y)
    assert_close(got, expected, rtol=1e-11, atol=1e-11)

    upstream = torch.randn_like(got)
    named = dict(model.named_parameters())
    for name, one, other in zip(
        named,
        torch.autograd.grad(got, list(named.values()), upstream),
        torch.autograd.grad(expected, list(named.values()), upstream),
        strict=True,
    ):
        assert_close(one, other, rtol=1e-9, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("mode", MODES)
def test_padding_of_the_context_has_no_effect(mode: Any) -> None:
    model = AsymmetricFusion(8, mode, heads=2).to(DTYPE).eval()
    x = torch.randn(3, 6, 8, dtype=DTYPE)
    y = torch.randn(3, 9, 8, dtype=DTYPE)
    lengths = torch.tensor([9, 4, 1])
    together = model(x, y, lengths)
    for i, length in enumerate(lengths.tolist()):
        alone = model(x[i : i + 1], y[i : i + 1, :length])
        assert_close(together[i : i + 1], alone, rtol=1e-10, atol=1e-10)
    assert_close(model(x, y, torch.tensor([9, 9, 9])), model(x, y), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mode", MODES)
def test_maps_and_sequences(mode: Any) -> None:
    model = AsymmetricFusion(8, mode, context_dim=5, heads=2).to(DTYPE).eval()
    image, sentence = torch.randn(2, 8, 4, 6, dtype=DTYPE), torch.randn(2, 7, 5, dtype=DTYPE)
    small_map = torch.randn(2, 5, 3, 2, dtype=DTYPE)
    fused = model(image, sentence)
    assert fused.shape == image.shape
    as_sequences = model(image.flatten(2).transpose(1, 2), sentence)  # a map beside a sequence, row by row
    assert_close(fused.flatten(2).transpose(1, 2), as_sequences, rtol=1e-11, atol=1e-11)
    assert model(image, small_map).shape == image.shape


def test_two_maps_are_correlated_in_two_dimensions() -> None:
    model = AsymmetricFusion(4).to(DTYPE).eval()
    x, y = torch.randn(1, 4, 5, 6, dtype=DTYPE), torch.randn(1, 4, 3, 4, dtype=DTYPE)
    a = model.project_x(model.norm_x(x.permute(0, 2, 3, 1)))[0].permute(2, 0, 1)
    b = model.project_y(model.norm_y(y.permute(0, 2, 3, 1)))[0].permute(2, 0, 1)
    z = _formula_2d(a, b / 12**0.5)
    expected = x + model.project_out(z.permute(1, 2, 0)).permute(2, 0, 1)
    assert_close(model(x, y), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("mode", MODES)
def test_compiled_in_one_graph(mode: Any) -> None:
    torch.compiler.reset()
    model = AsymmetricFusion(8, mode, heads=2)
    x, y = torch.randn(2, 6, 8), torch.randn(2, 5, 8)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x, y), model(x, y), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_exported_file_computes_the_same(mode: Any, tmp_path: Path) -> None:
    model = AsymmetricFusion(8, mode, heads=2).eval()
    inputs = (torch.randn(3, 8, 4, 5), torch.randn(3, 8, 3, 2))
    export_model(model, inputs, tmp_path / mode, format="torch_export", fixed_size=True)  # compares the outputs


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"mode": "gated"}, "mode='gated'; expected one of dynamic, static, product, cross_attention"),
        ({"dim": 0}, "dim=0"),
        ({"mode": "cross_attention", "heads": 3}, "heads=3; expected"),
    ],
)
def test_arguments_that_cannot_be(args: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AsymmetricFusion(**({"dim": 8} | args))


def test_shapes_that_do_not_fit() -> None:
    model = AsymmetricFusion(8)
    for x, y in (((2, 5, 7), (2, 5, 8)), ((2, 5, 8), (3, 5, 8)), ((2, 5, 8), (2, 5, 4)), ((2, 8), (2, 5, 8))):
        with pytest.raises(ValueError, match="expected"):
            model(torch.zeros(x), torch.zeros(y))
    with pytest.raises(ValueError, match="y is a map"):
        model(torch.zeros(1, 5, 8), torch.zeros(1, 8, 2, 2), torch.tensor([2]))


def test_benchmark_measures_every_mode(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "fusion.py"
    monkeypatch.syspath_prepend(str(script.parent))
    small = ["--channels", "8", "--length", "9", "--contexts", "3", "--batch", "2", "--rounds", "1"]
    monkeypatch.setattr("sys.argv", [str(script), *small, "--results", str(tmp_path / "fusion.json")])
    runpy.run_path(str(script), run_name="__main__")
    entries = json.loads((tmp_path / "fusion.json").read_text())
    assert [entry["kind"] for entry in entries] == ["training", "inference"]
    assert all(set(entry["ms"]) == set(MODES) for entry in entries)
    assert "| training | 3 |" in capsys.readouterr().out
