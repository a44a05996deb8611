"""The operators that stand in for mmcv's compiled ones, against plainly written formulas: values and gradients."""

import runpy
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from vision.openmmlab import install_operators
from vision.openmmlab.operators import _Operators

if not install_operators():
    pytest.skip("mmcv has its own operators here", allow_module_level=True)

from mmcv.ops import nms, roi_align, sigmoid_focal_loss


def _overlap(a: np.ndarray, b: np.ndarray, offset: int) -> float:
    sides = [max(min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + offset, 0) for i in (0, 1)]
    areas = [(box[2] - box[0] + offset) * (box[3] - box[1] + offset) for box in (a, b)]
    both = sides[0] * sides[1]
    return float(both / (sum(areas) - both))


def _plain_nms(boxes: np.ndarray, scores: np.ndarray, threshold: float, offset: int) -> list[int]:
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable"):
        if all(_overlap(boxes[i], boxes[j], offset) <= threshold for j in kept):
            kept.append(int(i))
    return kept


def _boxes(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 20
    return torch.cat([corner, corner + 1 + torch.rand(count, 2, generator=generator) * 15], dim=1)


@given(
    count=st.integers(1, 30), seed=st.integers(0, 999), threshold=st.floats(0.05, 0.95), offset=st.sampled_from([0, 1])
)
@settings(max_examples=60)
def test_nms(count: int, seed: int, threshold: float, offset: int) -> None:
    boxes, scores = _boxes(count, seed).double(), torch.rand(count, generator=torch.Generator().manual_seed(seed))
    found, kept = nms(boxes, scores.double(), threshold, offset)
    assert kept.tolist() == _plain_nms(boxes.numpy(), scores.double().numpy(), threshold, offset)
    assert_close(found, torch.cat([boxes[kept], scores.double()[kept, None]], dim=1), rtol=0, atol=0)


def test_widening_by_one_changes_what_is_kept() -> None:
    boxes, scores = torch.tensor([[0.0, 0, 2, 2], [1, 1, 3, 3]]), torch.tensor([0.9, 0.8])
    assert nms(boxes, scores, 0.2, 0)[1].tolist() == [0, 1]  # 1 / 7
    assert nms(boxes, scores, 0.2, 1)[1].tolist() == [0]  # 4 / 14


def test_nms_of_nothing_and_of_equal_scores() -> None:
    assert len(nms(torch.zeros(0, 4), torch.zeros(0), 0.5)[1]) == 0
    far = torch.tensor([[0.0, 0, 1, 1], [5, 5, 6, 6], [9, 9, 10, 10]])
    assert nms(far, torch.ones(3), 0.5)[1].tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_nms_in_half_precision_is_that_of_the_rounded_boxes(dtype: torch.dtype) -> None:
    boxes, scores = _boxes(20, 3).to(dtype), torch.linspace(1, 0.1, 20).to(dtype)
    found, kept = nms(boxes, scores, 0.4)
    assert found.dtype == dtype
    assert kept.tolist() == _plain_nms(boxes.float().numpy(), scores.float().numpy(), 0.4, 0)


def _sample(image: np.ndarray, y: float, x: float) -> np.ndarray:
    """Bilinear sample of (C, H, W) at a point, zero beyond one pixel outside."""
    height, width = image.shape[1:]
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(len(image))
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = min(int(y), height - 1), min(int(x), width - 1)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    upper = image[:, top, left] * (1 - dx) + image[:, top, right] * dx
    lower = image[:, bottom, left] * (1 - dx) + image[:, bottom, right] * dx
    return np.asarray(upper * (1 - dy) + lower * dy)


def _plain_roi_align(x: np.ndarray, rois: np.ndarray, size: int, scale: float, ratio: int, aligned: bool) -> np.ndarray:
    output = np.zeros((len(rois), x.shape[1], size, size))
    shift = 0.5 if aligned else 0.0
    for n, (image, *box) in enumerate(rois):
        x1, y1, x2, y2 = (v * scale - shift for v in box)
        width, height = x2 - x1, y2 - y1
        if not aligned:
            width, height = max(width, 1.0), max(height, 1.0)
        bin_h, bin_w = height / size, width / size
        rows, columns = (ratio, ratio) if ratio else (max(int(np.ceil(bin_h)), 1), max(int(np.ceil(bin_w)), 1))
        for i in range(size):
            for j in range(size):
                points = [
                    _sample(x[int(image)], y1 + bin_h * (i + (r + 0.5) / rows), x1 + bin_w * (j + (c + 0.5) / columns))
                    for r in range(rows)
                    for c in range(columns)
                ]
                output[n, :, i, j] = np.mean(points, axis=0)
    return output


def _rois(count: int = 6) -> torch.Tensor:
    return torch.cat([torch.arange(count)[:, None] % 2, _boxes(count, 5)], dim=1)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align(aligned: bool, ratio: int) -> None:
    x = torch.randn(2, 3, 9, 11, dtype=torch.double, requires_grad=True)
    rois = _rois().double()
    output = roi_align(x, rois, (3, 3), 0.4, ratio, "avg", aligned)
    expected = _plain_roi_align(x.detach().numpy(), rois.numpy(), 3, 0.4, ratio, aligned)
    assert_close(output.detach(), torch.from_numpy(expected))


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
def test_gradient_of_roi_align(aligned: bool, ratio: int) -> None:
    """The output is linear in the map: the gradient is the formula applied to unit maps."""
    x, rois = torch.randn(1, 1, 5, 6, dtype=torch.double, requires_grad=True), _rois(2).double()
    rois[:, 0] = 0
    output = roi_align(x, rois, (2, 2), 0.25, ratio, "avg", aligned)
    weight = torch.randn_like(output)
    (gradient,) = torch.autograd.grad((output * weight).sum(), x)
    for place in np.ndindex(5, 6):
        unit = np.zeros((1, 1, 5, 6))
        unit[0, 0][place] = 1
        response = _plain_roi_align(unit, rois.numpy(), 2, 0.25, ratio, aligned)
        assert float(gradient[0, 0][place]) == pytest.approx(float((response * weight.numpy()).sum()), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_roi_align_in_half_precision_is_the_rounded_result(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 9, 11).to(dtype).requires_grad_()
    output = roi_align(x, _rois().to(dtype), (3, 3), 0.5, 2, "avg", True)
    single = x.detach().float().requires_grad_()
    expected = roi_align(single, _rois().to(dtype).float(), (3, 3), 0.5, 2, "avg", True)
    assert output.dtype == dtype
    assert_close(output, expected.to(dtype), rtol=0, atol=0)
    output.float().sum().backward()
    expected.sum().backward()
    assert x.grad is not None
    assert single.grad is not None
    assert_close(x.grad, single.grad.to(dtype))


@pytest.mark.parametrize("weighted", [False, True])
def test_focal_loss_and_its_gradient(weighted: bool) -> None:
    x = torch.randn(7, 4, dtype=torch.double, requires_grad=True)
    target = torch.tensor([0, 1, 2, 3, 4, 4, 0])  # 4: the background
    weight = torch.rand(4, dtype=torch.double) if weighted else None
    loss = sigmoid_focal_loss(x, target, 2.0, 0.25, weight, "none")
    p, expected = x.sigmoid(), torch.zeros_like(x)
    for n, row in enumerate(target.tolist()):
        for c in range(4):
            q, a = (p[n, c], 0.25) if row == c else (1 - p[n, c], 0.75)
            expected[n, c] = -a * (1 - q) ** 2 * q.log() * (weight[c] if weight is not None else 1)
    assert_close(loss, expected)
    assert_close(
        torch.autograd.grad(sigmoid_focal_loss(x, target, 2.0, 0.25, weight, "sum"), x),
        torch.autograd.grad(expected.sum(), x),
    )


def test_every_other_operator_is_refused_by_name_when_it_is_called() -> None:
    import mmcv.ops

    module = mmcv._ext
    with pytest.raises(FileNotFoundError, match=r"compiled operator 'softnms' is missing.*mmcv\.readthedocs\.io"):
        mmcv.ops.soft_nms(torch.rand(3, 4), torch.rand(3))
    x = torch.rand(1, 2, 8, 8)
    with pytest.raises(FileNotFoundError, match=r"roi_align with pool_mode='max'"):
        roi_align(x, _rois(2), (2, 2), 1.0, 2, "max", True)
    for name in ("modulated_deform_conv_forward", "carafe_forward", "any_name_at_all"):
        with pytest.raises(FileNotFoundError, match=f"'{name}'"):
            getattr(module, name)()
    with pytest.raises(AttributeError):
        _ = module.__wrapped__


def test_a_second_call_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["mmcv._ext"]
    assert isinstance(module, _Operators)
    assert install_operators()
    assert sys.modules["mmcv._ext"] is module is mmcv._ext


@pytest.mark.parametrize("imported", [True, False])
def test_steps_aside_where_mmcv_has_its_own(imported: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    own: Any = types.ModuleType("mmcv._ext")
    monkeypatch.delitem(sys.modules, "mmcv._ext")
    if imported:
        monkeypatch.setitem(sys.modules, "mmcv._ext", own)
    else:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: own if name == "mmcv._ext" else None)
    assert not install_operators()
    assert sys.modules.get("mmcv._ext") is (own if imported else None)


def test_one_import_is_enough_for_every_head() -> None:
    code = "import vision.openmmlab, mmcv.ops, mmdet.models, mmseg.models; print('fine')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.endswith("fine\n"), done.stderr


def test_scripts_that_import_the_operators_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As Python would run them, with their arguments and the modules beside them, once this package is imported."""
    tool = tmp_path / "tool.py"
    (tmp_path / "beside_the_tool.py").write_text("here = 'here'\n")
    tool.write_text(
        "import sys\nfrom beside_the_tool import here\nfrom mmcv.ops import nms\nprint(__name__, sys.argv, here)\n"
    )
    monkeypatch.setattr(sys, "argv", ["-m", str(tool), "--a", "b"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    runpy.run_module("vision.openmmlab", run_name="__main__")
    assert capsys.readouterr().out.strip() == f"__main__ {[str(tool), '--a', 'b']} here"


@pytest.mark.parametrize(("words", "message"), [(["no.py"], "there is no script no.py"), ([], "no script was given")])
def test_script_that_is_not_there(words: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["-m", *words])
    with pytest.raises(SystemExit, match=f"{message}; expected: python -m vision.openmmlab TOOL.py"):
        runpy.run_module("vision.openmmlab", run_name="__main__")
