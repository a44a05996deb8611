"""The base task and the classification task: what they refuse, and how they train."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset
from training.small_runs import CLASSES

from core.backbones.build import build_backbone
from core.data.module import DataModule
from core.errors import InputError, MissingError
from core.training.classification import MAX_CONFUSION_CLASSES
from vision import ImageClassifier, ImageFolder, ImageSpec

TINY = "test_unireplknet"
OPTIONS: dict[str, Any] = {
    **{"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False},
    **{"enable_model_summary": False, "max_epochs": 1},
}


class _Labels(DataModule):
    """Random 32 x 32 maps with the labels given."""

    def __init__(self, labels: list[int], classes: list[str], **kwargs: Any) -> None:
        super().__init__(num_workers=0, **kwargs)
        self.classes = classes
        x = torch.randn(len(labels), 3, 32, 32, generator=torch.Generator().manual_seed(0))
        self.train_set = self.val_set = TensorDataset(x, torch.tensor(labels))


def _own(**kwargs: Any) -> ImageClassifier:
    return ImageClassifier(TINY, 3, backbone_args={"layer_scale_init_value": 0.5}, **kwargs)


def test_unknown_model_suggests_near_names() -> None:
    with pytest.raises(InputError, match=r"unknown model 'unireplknet_tt'; did you mean .*unireplknet_t"):
        ImageClassifier("unireplknet_tt", 3)
    with pytest.raises(InputError, match=r"unknown model 'qqqqqqqq'; list them"):
        build_backbone("qqqqqqqq")


def test_argument_that_the_backbone_does_not_take() -> None:
    with pytest.raises(InputError, match=r"test_unireplknet does not take these backbone_args.*color"):
        ImageClassifier(TINY, 3, backbone_args={"color": 1})


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"opt": "adamww"}, r"unknown optimizer 'adamww'; timm has .*adamw"),
        ({"lr": 0.0}, r"lr=0.0.*expected lr > 0"),
        ({"lr": float("nan")}, r"lr=nan.*all finite"),
        ({"lr": float("inf")}, r"lr=inf.*all finite"),
        ({"min_lr": -1e-6}, r"min_lr=-1e-06.*0 <= min_lr <= lr"),
        ({"lr": 1e-3, "min_lr": 2e-3}, r"lr=0.001, min_lr=0.002.*0 <= min_lr <= lr"),
        ({"min_lr": float("nan")}, r"min_lr=nan.*0 <= min_lr <= lr"),
        ({"weight_decay": -0.1}, r"weight_decay=-0.1.*weight_decay >= 0"),
        ({"layer_decay": 0.0}, r"layer_decay=0.0.*0 < layer_decay <= 1"),
        ({"layer_decay": 1.5}, r"layer_decay=1.5.*0 < layer_decay <= 1"),
        ({"warmup_epochs": -1.0}, r"warmup_epochs=-1.0.*warmup_epochs >= 0"),
    ],
)
def test_arguments_out_of_range(argument: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ImageClassifier(TINY, 3, **argument)


def test_one_class_is_refused() -> None:
    with pytest.raises(InputError, match=r"num_classes=1; expected a number from 2"):
        ImageClassifier(TINY, 1)


@pytest.mark.parametrize("sizes", [{"batch_size": 0}, {"num_workers": -1}, {"min_epoch_steps": 0}])
def test_impossible_loader_is_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(InputError, match="expected 1 to 1,000,000 samples, 0 to 1,000 workers, and 1 to"):
        DataModule(**sizes)


def test_data_module_without_samples_says_which() -> None:
    with pytest.raises(MissingError, match="DataModule has no test samples"):
        DataModule().test_dataloader()


def test_module_as_backbone_gets_a_classifier_of_the_right_size() -> None:
    task = ImageClassifier(timm.create_model(TINY, num_classes=7), 3)
    assert task(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    assert ImageClassifier(plain, 3)(torch.randn(2, 3, 4, 4)).shape == (2, 3)
    with pytest.raises(InputError, match="a module is already built"):
        ImageClassifier(timm.create_model(TINY), 3, backbone_args={"in_chans": 1})


def test_weights_are_loaded_into_the_backbone(tmp_path: Path) -> None:
    source = timm.create_model(TINY, num_classes=3)
    torch.save({"model": source.state_dict()}, tmp_path / "weights.pth")
    assert_close(_own(weights=str(tmp_path / "weights.pth")).backbone.head.weight, source.head.weight, rtol=0, atol=0)
    with pytest.raises(MissingError, match="no weights at"):
        _own(weights=str(tmp_path / "absent.pth"))


class _Modes(Callback):
    """Whether batch norms were in train mode, and dropout with them, in each training step."""

    def __init__(self) -> None:
        self.norms: set[bool] = set()
        self.others: set[bool] = set()

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        for module in pl_module.get_submodule("backbone").modules():
            (self.norms if isinstance(module, nn.BatchNorm2d) else self.others).add(module.training)


@pytest.mark.parametrize("norm_eval", [True, False])
def test_norm_eval_keeps_the_statistics_through_a_run(norm_eval: bool) -> None:
    task, modes = _own(norm_eval=norm_eval), _Modes()
    before = {n: b.clone() for n, b in task.named_buffers() if "running" in n}
    weight = task.backbone.stages[0][0].norm.weight.detach().clone()
    data = _Labels([0, 1, 2, 0], CLASSES, batch_size=2)
    Trainer(**OPTIONS | {"max_epochs": 2}, callbacks=[modes]).fit(task, datamodule=data)
    assert modes.norms == {not norm_eval}
    assert modes.others == {True}
    changed = any(not torch.equal(before[n], b) for n, b in task.named_buffers() if n in before)
    assert changed != norm_eval
    assert not torch.equal(task.backbone.stages[0][0].norm.weight, weight)


def test_data_with_other_classes(photos: Path) -> None:
    data = ImageFolder(str(photos), size=32, batch_size=6, num_workers=0)
    with pytest.raises(InputError, match=r"has 5 classes and the data 3 \(brick, leaf, sea\); .* set it to 3$"):
        Trainer(**OPTIONS).fit(ImageClassifier(TINY, 5), datamodule=data)


@pytest.mark.parametrize("label", [-1, 3, 255])
def test_label_outside_the_classes(label: int) -> None:
    with pytest.raises(InputError, match=rf"label {label} is outside 0..2"):
        Trainer(**OPTIONS).fit(_own(), datamodule=_Labels([0, 1, label, 2], CLASSES, batch_size=2))


@pytest.mark.parametrize(
    ("samples", "batch_size", "drop_last", "sizes"),
    [(6, 3, True, [2, 2]), (7, 4, False, [4, 2]), (3, 4, True, [2]), (5, 4, False, [4])],
)
def test_mixup_leaves_out_the_sample_without_a_partner(
    samples: int, batch_size: int, drop_last: bool, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An odd batch loses one sample; a batch of one is not trained on at all."""
    seen: list[int] = []
    read = ImageClassifier.read

    def noted(self: ImageClassifier, maps: Tensor) -> Tensor:
        if self.training:
            seen.append(len(maps))
        return read(self, maps)

    monkeypatch.setattr(ImageClassifier, "read", noted)
    data = _Labels([i % 3 for i in range(samples)], CLASSES, batch_size=batch_size, drop_last=drop_last)
    Trainer(**OPTIONS).fit(_own(cutmix_alpha=0.5), datamodule=data)
    assert seen == sizes


@pytest.mark.parametrize("batch_size", [1, 4])
def test_one_training_sample_is_refused(batch_size: int) -> None:
    with pytest.raises(InputError, match=r"at least two are needed, .*: batch norm would take its statistics"):
        Trainer(**OPTIONS).fit(_own(), datamodule=_Labels([0], CLASSES, batch_size=batch_size))


def test_callback_that_unfreezes_is_refused_before_training() -> None:
    data = _Labels([0, 1, 2, 0], CLASSES, batch_size=2)
    with pytest.raises(InputError, match=r"BackboneFinetuning adds parameters .*requires_grad_.*--model\.layer_decay"):
        Trainer(**OPTIONS, callbacks=[BackboneFinetuning()]).fit(_own(), datamodule=data)


def test_data_module_can_be_pickled_after_a_run() -> None:
    """It holds the trainer, and that the schedule, which still gives the same rates."""
    data = _Labels([0, 1, 2, 0], CLASSES, batch_size=2)
    Trainer(**OPTIONS | {"max_epochs": 2}).fit(_own(), datamodule=data)
    copy = pickle.loads(pickle.dumps(data))
    one, other = (each.trainer.lr_scheduler_configs[0].scheduler for each in (copy, data))
    factors = [other.lr_lambdas[0](step) for step in range(5)]
    assert factors == pytest.approx([1.0, 0.853700, 0.500500, 0.147300, 0.001], abs=1e-6)
    assert [one.lr_lambdas[0](step) for step in range(5)] == factors


def test_samples_are_there_after_setup_without_a_stage(photos: Path) -> None:
    data = ImageFolder(str(photos), size=32, batch_size=6, num_workers=0)
    with pytest.raises(MissingError, match=r"no train samples; call setup\(\)"):
        data.train_dataloader()
    data.setup()
    assert [len(data.train_dataloader()), len(data.val_dataloader())] == [3, 2]


@pytest.mark.parametrize(("argument", "text"), [({"label_smoothing": 1.0}, "1.0"), ({"mixup_alpha": -0.1}, "-0.1")])
def test_smoothing_and_mixing_out_of_range(argument: dict[str, float], text: str) -> None:
    with pytest.raises(InputError, match=f"{next(iter(argument))}={text}"):
        _own(**argument)


def test_top_five_appears_from_ten_classes_on() -> None:
    assert set(ImageClassifier(TINY, 9).scores["val"]) == {"val_acc"}
    assert set(ImageClassifier(TINY, 10).scores["val"]) == {"val_acc", "val_acc5"}
    assert set(ImageClassifier(TINY, 10).scores["test"]) == {"test_acc", "test_acc5"}


def test_lr_batch_needs_to_know_the_batch() -> None:
    loader = torch.utils.data.DataLoader(_Labels([0, 1], CLASSES).train_set, batch_size=2)
    with pytest.raises(InputError, match=r"lr_batch needs a core\.data\.module\.DataModule"):
        Trainer(**OPTIONS).fit(_own(lr_batch=8), loader)


def test_evaluation_loaders_in_a_list() -> None:
    loader = DataLoader(TensorDataset(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])), batch_size=2)
    trainer, task = Trainer(**OPTIONS), _own()
    trainer.fit(task, loader, [loader])
    (scores,) = trainer.test(task, [loader], verbose=False)
    assert set(scores) == {"test_loss", "test_acc"}


def test_a_file_stands_in_for_the_published_weights(tmp_path: Path) -> None:
    """Nothing is looked for on the Hub: a recipe that begins with published weights takes a downloaded file."""
    source = timm.create_model(TINY, num_classes=3, layer_scale_init_value=0.5)
    torch.save(source.state_dict(), tmp_path / "net.pth")
    with pytest.raises(InputError, match="test_unireplknet cannot be built"):
        _own(pretrained=True)
    task = _own(pretrained=True, weights=str(tmp_path / "net.pth"))
    assert_close(task.backbone.state_dict(), source.state_dict(), rtol=0, atol=0)


def test_checkpoint_holds_all_weights(tmp_path: Path) -> None:
    """Neither the file that a run began with nor published weights are needed to read its checkpoint."""
    weights, file = tmp_path / "w.pth", tmp_path / "run.ckpt"
    torch.save(_own().backbone.state_dict(), weights)
    task = _own(weights=str(weights))
    trainer = Trainer(**OPTIONS)
    trainer.fit(task, _Labels([0, 1, 2, 0], ["a", "b", "c"], batch_size=2))
    trainer.save_checkpoint(file)
    weights.unlink()
    loaded = ImageClassifier.load_from_checkpoint(file)
    assert_close(dict(loaded.state_dict()), dict(task.state_dict()))
    assert loaded.hparams["weights"] is None


def test_other_class_names_are_refused_with_a_checkpoint() -> None:
    task = ImageClassifier(TINY, spec=ImageSpec(classes=("cat", "cow", "eel")))
    with pytest.raises(InputError, match=r"dog where the data have cow; give data with its classes"):
        task.on_load_checkpoint({"hyper_parameters": {"spec": {"classes": ["cat", "dog", "eel"]}}})
    task.on_load_checkpoint({"hyper_parameters": {"spec": {"classes": ["0", "1", "2"]}}})  # only their number is known
    assert task.class_names == ["cat", "cow", "eel"]


def test_class_names_are_taken_from_the_data_and_then_stay() -> None:
    task = _own()
    assert task.class_names == ["0", "1", "2"]
    Trainer(**OPTIONS).fit(task, datamodule=_Labels([0, 1, 2, 0], CLASSES, batch_size=2))
    assert task.class_names == CLASSES
    with pytest.raises(InputError, match=r"brick where the data have a, .*; give data with its classes"):
        Trainer(**OPTIONS).fit(task, datamodule=_Labels([0, 1, 2, 0], ["a", "leaf", "c"], batch_size=2))


def test_of_very_many_classes_no_pairs_are_counted() -> None:
    labels = [0, 1, 2, 3]
    task = ImageClassifier(TINY, MAX_CONFUSION_CLASSES + 1)
    assert not list(task.confusion.children())
    Trainer(**OPTIONS).fit(task, _Labels(labels, [str(i) for i in range(MAX_CONFUSION_CLASSES + 1)], batch_size=2))


@pytest.mark.parametrize("norm_eval", [False, True])
def test_batch_of_one_sample_whose_last_map_is_one_pixel(norm_eval: bool) -> None:
    data = _Labels([0, 1, 2, 0], CLASSES, batch_size=1)
    trainer = Trainer(**OPTIONS)
    if norm_eval:
        trainer.fit(_own(norm_eval=True), datamodule=data)
        assert trainer.global_step == 4
        return
    with pytest.raises(
        InputError, match=r"one value for each channel.*--data\.batch_size 2 or more.*--model\.norm_eval"
    ):
        trainer.fit(_own(), datamodule=data)
