"""Lightning does not use a config's optimizer, schedule, hooks and weights, and a run says so."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from mm_files import data_of, tiny, write_config, write_scenes

from vision.openmmlab.config_files import read_config, unused_settings
from vision.openmmlab.segmenter import Segmenter

CASCADE = "cascade_mask_rcnn_unireplknet_b_in22k_3x_coco.py"
FCOS = "fcos_replknet_31b_in1k_2x_coco.py"


def test_it_names_what_is_lost_and_what_to_set() -> None:
    told = unused_settings(read_config(CASCADE), pretrained=False, weights=None)
    assert told == (
        f"{CASCADE}: Lightning does not use its optim_wrapper, param_scheduler, custom_hooks (EMAHook), init_cfg of "
        "the backbone; set --model.lr 0.0001, --model.layer_decay 0.8, --model.warmup_epochs EPOCHS, "
        "--trainer.callbacks+ EMA, --model.pretrained true"
    )
    told = unused_settings(read_config(FCOS, {"load_from": "all.pth"}), pretrained=True, weights=None)
    assert told == (
        f"{FCOS}: Lightning does not use its optim_wrapper, param_scheduler, load_from; set --model.lr 0.0002, "
        "--trainer.gradient_clip_val 35, --model.warmup_epochs EPOCHS, --model.weights all.pth"
    )


@pytest.mark.parametrize("name", ["mask_rcnn_unireplknet_a_digit_scenes.py", "upernet_unireplknet_a_digit_scenes.py"])
def test_the_demos_lose_nothing(name: str) -> None:
    assert unused_settings(read_config(name), pretrained=False, weights=None) is None


@pytest.mark.parametrize("given", ["pretrained", "weights"])
def test_what_is_loaded_is_not_lost(given: str) -> None:
    config = read_config(CASCADE, {"custom_hooks": [], "optim_wrapper": None, "param_scheduler": []})
    options: dict[str, Any] = {"pretrained": False, "weights": None}
    assert "init_cfg" in str(unused_settings(config, **options))
    assert unused_settings(config, **options | {given: "w.pth" if given == "weights" else True}) is None


def test_a_run_says_so_once_and_predictions_do_not(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    scenes = write_scenes(tmp_path / "scenes")
    path = write_config(tiny("upernet_unireplknet_t", root=scenes), scenes / "mine.py")
    task, data = Segmenter(path), data_of(path)
    options: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = Trainer(default_root_dir=tmp_path, accelerator="cpu", max_epochs=1, limit_train_batches=1, **options)

    def told() -> list[str]:
        return [str(w.message) for w in recwarn.list if "Lightning does not use" in str(w.message)]

    with torch.no_grad():
        trainer.predict(task, datamodule=data)
    assert not told()
    trainer.fit(task, datamodule=data)
    assert told() == [
        "mine.py: Lightning does not use its optim_wrapper, param_scheduler; set --model.lr 0.0001, "
        "--model.warmup_epochs EPOCHS"
    ]
