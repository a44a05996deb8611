"""Precision, memory formats, compilation and export: the same numbers whichever way the net is run."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_values import TINIES, TINY, TINY_REPLKNET, fill, golden_input, relative_difference, tiny
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.testing import assert_close

import core
from core.backbones.unireplknet import GlobalResponseNorm
from core.export import export_model

SMALL: dict[str, Any] = {"depths": (1, 2), "dims": (8, 12), "kernel_sizes": (3, (9, 0)), "num_classes": 5}
SMALL_REPLKNET: dict[str, Any] = {"depths": (1, 1), "dims": (8, 12), "kernel_sizes": (9, 7), "num_classes": 5}
FORMS = [
    *[(TINY, SMALL, form) for form in ("train", "checkpointing", "inference")],
    *[(TINY_REPLKNET, SMALL_REPLKNET, form) for form in ("train", "inference")],
]
SIZES = [(1, 3, 97, 131), (3, 3, 64, 64), (2, 3, 480, 256)]


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("net", TINIES)
@pytest.mark.parametrize("folded", [False, True])
def test_autocast_to_bfloat16(net: str, folded: bool) -> None:
    model, x = tiny(net), golden_input(2, 3, 64, 96)
    if folded:
        model = core.reparameterize(model)
    with torch.no_grad():
        expected = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            got = model(x)
    assert got.dtype == torch.bfloat16
    assert relative_difference(got.float(), expected) < 0.03


@pytest.mark.parametrize("net", TINIES)
@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float16, 0.005), (torch.bfloat16, 0.03)])
def test_pure_half_precision_with_large_inputs(net: str, dtype: torch.dtype, limit: float, folded: bool) -> None:
    model, x = tiny(net).to(dtype), (400 * golden_input(2, 3, 64, 96)).to(dtype)
    wide = copy.deepcopy(model).float()
    if folded:
        model = core.reparameterize(model)
    with torch.no_grad():
        got, expected = model(x), wide(x.float())
    assert got.dtype == dtype
    assert relative_difference(got.float(), expected) < limit


@pytest.mark.parametrize("layer", [LayerNorm2d(16, eps=1e-6), nn.LayerNorm(16, eps=1e-6), GlobalResponseNorm(16)])
def test_norms_do_not_overflow_in_half_precision(layer: nn.Module) -> None:
    fill(layer)
    x = (400 * golden_input(2, 16, 16, 16)).half()
    assert x.square().isinf().any()  # statistics in half precision would overflow
    got, expected = copy.deepcopy(layer).half()(x), layer(x.float())
    assert got.dtype == torch.float16
    assert relative_difference(got.float(), expected) < 2e-3


@pytest.mark.parametrize("net", TINIES)
def test_channels_last_is_the_same(net: str) -> None:
    model, x = tiny(net), golden_input(2, 3, 96, 64)
    expected = model(x)
    got = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert relative_difference(got, expected) < 1e-5


@pytest.mark.parametrize("use_bias", [False, True])
def test_response_norm_is_the_formula(use_bias: bool) -> None:
    layer = GlobalResponseNorm(5, use_bias=use_bias).double()
    fill(layer)
    x = golden_input(2, 3, 4, 5).double()
    norm = torch.stack([x[..., c].flatten(1).norm(dim=1) for c in range(5)], dim=1)
    ratio = norm / (norm.mean(dim=1, keepdim=True) + 1e-6)
    expected = layer.gamma * (x * ratio[:, None, None]) + x + (layer.beta if layer.beta is not None else 0)
    assert_close(layer(x), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_response_norm_of_zeros_has_finite_gradients(dtype: torch.dtype) -> None:
    layer = GlobalResponseNorm(4).to(dtype)
    fill(layer)
    x = torch.zeros(2, 3, 3, 4, dtype=dtype, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.gamma.grad is not None
    assert_close(x.grad, torch.ones_like(x), rtol=0, atol=1e-5)
    assert layer.gamma.grad.isfinite().all()


def test_epsilons_are_the_official_ones() -> None:
    modules = list(tiny(feature_norms=True).modules())
    assert {m.eps for m in modules if isinstance(m, nn.LayerNorm)} == {1e-6}
    assert {(m.eps, m.momentum) for m in modules if isinstance(m, nn.BatchNorm2d)} == {(1e-5, 0.1)}
    norm, x = LayerNorm2d(2, eps=1e-6), torch.tensor([1e-3, -1e-3]).view(1, 2, 1, 1)  # the variance of x equals eps
    assert_close(norm(x).flatten(), torch.tensor([0.5**0.5, -(0.5**0.5)]))


def _step(model: nn.Module, run: Any, x: Tensor) -> dict[str, Tensor]:
    y = run(x)
    y.square().mean().backward()
    gradients = {f"gradient {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"output": y.detach()} | gradients | dict(model.named_buffers())


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize(("net", "options", "form"), FORMS)
@pytest.mark.parametrize(("dtype", "rtol", "atol"), [(torch.float64, 1e-8, 1e-10), (torch.float32, 1e-3, 1e-5)])
def test_compiled_model_is_the_same(
    dtype: torch.dtype, rtol: float, atol: float, net: str, options: dict[str, Any], form: str
) -> None:
    model, x = tiny(net, **options).to(dtype), golden_input(2, 3, 64, 96).to(dtype)
    model = core.reparameterize(model) if form == "inference" else model.train()
    plain = copy.deepcopy(model)
    model.set_grad_checkpointing(form == "checkpointing")
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    got, expected = _step(model, compiled, x), _step(plain, plain, x)
    assert_close(got, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize(("net", "options"), [(TINY, SMALL), (TINY_REPLKNET, SMALL_REPLKNET)])
def test_gradients_of_single_samples(net: str, options: dict[str, Any]) -> None:
    model, x = tiny(net, **options).eval(), golden_input(3, 3, 64, 96)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], x_CHW: Tensor) -> Tensor:
        logits: Tensor = torch.func.functional_call(model, parameters, (x_CHW[None],))
        return logits.square().mean()

    got = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for i in range(len(x)):
        model.zero_grad()
        model(x[i : i + 1]).square().mean().backward()
        expected = {name: p.grad for name, p in model.named_parameters()}
        assert_close({name: gradients[i] for name, gradients in got.items()}, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("_fresh_compiler")
def test_one_compilation_serves_other_sizes() -> None:
    model = tiny(**SMALL).double()
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for shape in [(2, 3, 32, 48), *SIZES]:  # the last map of the first is smaller than the kernel
            x = golden_input(*shape).double()
            assert relative_difference(compiled(x), model(x)) < 1e-10
    assert counter.frame_count <= 3  # the first, one for batches of 1, one for maps smaller than the kernel


@pytest.mark.parametrize(
    ("net", "options", "folded"), [(TINY, SMALL, False), (TINY, {}, True), (TINY_REPLKNET, SMALL_REPLKNET, True)]
)
def test_exported_program_runs_at_other_sizes(net: str, options: dict[str, Any], folded: bool) -> None:
    model = tiny(net, **options)
    model = core.reparameterize(model) if folded else model
    auto = torch.export.Dim.AUTO
    program = torch.export.export(model, (golden_input(2, 3, 64, 96),), dynamic_shapes=({0: auto, 2: auto, 3: auto},))
    exported = program.module()
    with torch.no_grad():
        for shape in SIZES:
            x = golden_input(*shape)
            assert relative_difference(exported(x), model(x)) < 1e-5


@pytest.mark.slow
def test_onnx_runs_at_other_sizes(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = tiny()
    file = export_model(model, golden_input(1, 3, 64, 96), tmp_path / "tiny.onnx", format="onnx")
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        for shape in SIZES:
            x = golden_input(*shape)
            got = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
            assert relative_difference(torch.from_numpy(got), model(x)) < 1e-4
    assert [f.name for f in tmp_path.iterdir()] == ["tiny.onnx"]


def test_export_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.export._write_pt2", lambda model, inputs, *_, **__: [1.01 * model(*inputs).detach()])
    with pytest.raises(RuntimeError, match="differs from the model"):
        export_model(tiny(), golden_input(1, 3, 64, 64), tmp_path / "tiny", format="torch_export")
    assert not list(tmp_path.iterdir())
