"""timm's own functions for the Hub on these backbones: saved to a folder, loaded by ``hf-hub:`` and ``local-dir:``."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from golden_values import TINY, TINY_REPLKNET, golden_input, tiny
from timm.models import push_to_hf_hub, save_for_hf

import core
from core.errors import InputError

MODELS: dict[str, Callable[[], Any]] = {
    "as registered": tiny,
    "one channel, five classes": lambda: tiny(in_chans=1, num_classes=5),
    "without classifier": lambda: tiny(num_classes=0),
    "own sizes": lambda: tiny(depths=(1, 2, 1, 1), dims=(8, 8, 16, 16), kernel_sizes=((5,), (17, 0), (15,), (7,))),
    "own branches": lambda: tiny(branches={13: ((5, 1), (3, 2))}),
    "built in inference form": lambda: tiny(inference_mode=True),
    "folded": lambda: core.reparameterize(tiny(num_classes=7)),
    "folded, without classifier": lambda: core.reparameterize(tiny(num_classes=0)),
    "RepLKNet": lambda: tiny(TINY_REPLKNET, kernel_sizes=(9, 9, 7, 5), small_kernel=3),
    "RepLKNet, merged": lambda: tiny(TINY_REPLKNET).merge_small_kernels(),
    "RepLKNet, folded": lambda: core.reparameterize(tiny(TINY_REPLKNET, num_classes=3)),
}


def _check(model: Any, loaded: Any) -> None:
    x = golden_input(2, model.in_chans, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(x), model(x))
    assert {n: t.shape for n, t in loaded.state_dict().items()} == {n: t.shape for n, t in model.state_dict().items()}


@pytest.mark.parametrize("name", MODELS)
def test_folder_and_hub(name: str, repository: Path) -> None:
    model = MODELS[name]()
    save_for_hf(model, str(repository), safe_serialization=True)
    assert {path.name for path in repository.iterdir()} == {"model.safetensors", "config.json"}
    _check(model, timm.create_model(f"local-dir:{repository}", pretrained=True))
    _check(model, timm.create_model("hf-hub:org/name", pretrained=True))


def test_a_classifier_changed_after_building(tmp_path: Path) -> None:
    model = tiny()
    model.reset_classifier(4)
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    _check(model, timm.create_model(f"local-dir:{tmp_path}", pretrained=True))
    other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=6)
    assert torch.equal(other.stages[3][0].dwconv.lk_origin.weight, model.stages[3][0].dwconv.lk_origin.weight)
    assert other.head.weight.shape == (6, 32)


def test_input_of_one_channel_is_described(tmp_path: Path) -> None:
    save_for_hf(tiny(in_chans=1), str(tmp_path), safe_serialization=True)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == TINY
    assert config["pretrained_cfg"]["input_size"] == [1, 64, 64]
    assert len(config["pretrained_cfg"]["mean"]) == 1


def test_folding_leaves_the_description_of_the_model_it_was_given(tmp_path: Path) -> None:
    model = tiny()
    core.reparameterize(model)
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    _check(model, timm.create_model(f"local-dir:{tmp_path}", pretrained=True))


def test_upload(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    class Api:
        def __init__(self, **_: Any) -> None: ...

        def create_repo(self, repo_id: str, **options: Any) -> Any:
            seen["private"] = options["private"]
            return type("Url", (), {"repo_id": repo_id})

        def file_exists(self, **_: Any) -> bool:
            return False

        def upload_folder(self, *, repo_id: str, folder_path: str, **_: Any) -> None:
            seen["files"] = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}

    monkeypatch.setattr("timm.models._hub.HfApi", Api)
    push_to_hf_hub(core.reparameterize(tiny()), "org/name", private=True, safe_serialization=True)
    assert seen["private"] is True
    assert set(seen["files"]) == {"model.safetensors", "config.json", "README.md"}
    assert json.loads(seen["files"]["config.json"])["model_args"]["inference_mode"] is True


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lk_mobilenetv2_050", {"kernel_size": 7, "num_classes": 5}),
        ("lk_mobilenetv2_050", {"shortcut": False, "num_classes": 5}),
        ("lk_resnet18", {"num_classes": 5}),
    ],
)
def test_enlarged_networks(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    model: Any = timm.create_model(name, **options).eval()
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    loaded: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = golden_input(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=2)
    assert other(x).shape == (2, 2)


@pytest.mark.parametrize("net", [TINY, TINY_REPLKNET])
def test_folded_classifier_is_not_taken_off(net: str, tmp_path: Path) -> None:
    """The classifier contains the final norm, so vectors without it would be wrong; maps do not need the norm."""
    model = tiny(net, num_classes=4)
    folded, x = core.reparameterize(model), golden_input(2, 3, 64, 64)
    save_for_hf(folded, str(tmp_path), safe_serialization=True)
    with pytest.raises(InputError, match=r"is folded, with the last norm in its classifier.*num_classes=4"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=0)
    with pytest.raises(InputError, match=r"remove it before core\.reparameterize"):
        folded.reset_classifier(0)
    maps = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True).eval()(x)
    wanted = model.forward_intermediates(x, intermediates_only=True)
    for a, b in zip(maps, wanted, strict=True):
        assert (a - b).abs().max() < 1e-4


@pytest.mark.parametrize("net", [TINY, TINY_REPLKNET])
def test_weights_of_the_hub_are_compared_with_their_hash(net: str, repository: Path) -> None:
    """The cache stores a large file under its SHA-256, with a link to it."""
    save_for_hf(tiny(net), str(repository), safe_serialization=True)
    link, blobs = repository / "model.safetensors", repository.parents[1] / "blobs"
    blobs.mkdir()
    content = blobs / hashlib.sha256(link.read_bytes()).hexdigest()
    link.rename(content)
    link.symlink_to(content)
    timm.create_model("hf-hub:org/name", pretrained=True)
    damaged = bytearray(content.read_bytes())
    damaged[-1] ^= 1
    content.write_bytes(damaged)
    with pytest.raises(InputError, match=r"safetensors of 'org/name' is not what the Hugging Face Hub has"):
        timm.create_model("hf-hub:org/name", pretrained=True)
