"""What a detector of MMDetection and a segmentor of MMSegmentation have in common as LightningModules."""

from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from lightning_utilities.core.rank_zero import rank_zero_warn
from mmengine.registry import DefaultScope
from PIL import Image
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from core.checkpoints import load_weights
from core.errors import InputError
from core.training.data import padding_in_batch
from core.training.drawing import draw_figure
from core.training.pictures import image_sheet
from core.training.run_folder import run_folder
from core.training.task import Task
from core.writing import whole_file
from vision.openmmlab.drawing import Sheet
from vision.openmmlab.models import build_model, read_config
from vision.openmmlab.unused import unused_settings

__all__ = ["Batch", "OpenMMLabTask"]

Batch = dict[str, list[Any]]
"""``inputs``: B images (3, H, W) uint8; ``data_samples``: B data samples of MMDetection or MMSegmentation."""


class OpenMMLabTask(Task):
    """A model of OpenMMLab in Lightning's loops: its own loss and predictions, LarKit's optimizer and schedule.

    Of the config the model and the data sets are used; a warning names what else it sets, and the options for that.

    Args:
        config: path of an OpenMMLab config, or the name of one in ``vision/openmmlab/configs``.
        options: values of the config to replace, by dotted name.
        pretrained: load what ``init_cfg`` of the config's backbone names.
        weights: file or Hub name with weights of the whole model or of its backbone, for :func:`core.load_weights`.
        kwargs: the other arguments of :class:`core.training.Task`.

    Raises:
        MissingError: if the config is not there.
        InputError: if it cannot be built, or is for the other package.
    """

    monitor_mode: ClassVar[Literal["min", "max"]] = "max"
    runs_files: ClassVar[tuple[str, ...]] = ("config",)
    val_score: Metric | MetricCollection
    test_score: Metric | MetricCollection
    scope: ClassVar[str]
    """The package whose config it takes."""

    def __init__(
        self,
        config: str,
        *,
        options: dict[str, Any] | None = None,
        pretrained: bool = False,
        weights: str | None = None,
        **kwargs: Any,
    ) -> None:
        read = read_config(config, options)
        if read.default_scope != self.scope:
            raise InputError(
                f"{config} is for {read.default_scope}; {type(self).__name__} takes configs of {self.scope}"
            )
        super().__init__(build_model(read, pretrained=pretrained and weights is None), **kwargs)
        self.unused = unused_settings(read, pretrained=pretrained, weights=weights)
        self.class_names: list[str] = []
        self.palette: list[Any] = []
        self.sheet = Sheet()
        if weights is not None:
            load_weights(self.model, weights)

    def attach(self, backbone: nn.Module) -> None:
        """Keep the whole model, which holds the backbone."""
        self.model = backbone

    @property
    def backbone(self) -> nn.Module:  # type: ignore[override]
        """The backbone inside the model."""
        return self.model.get_submodule("backbone")

    def forward(self, batch: Batch) -> list[Any]:
        """Predictions of a batch, one data sample an image, boxes and maps in the size of the original image."""
        data = self._prepared(batch)
        with DefaultScope.overwrite_default_scope(self.scope):
            predictions: list[Any] = self.model(**data, mode="predict")
        return predictions

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The model's own loss; its parts are logged as ``train_...``."""
        self.check_batch(batch)
        with DefaultScope.overwrite_default_scope(self.scope):
            losses = self.model(**self._prepared(batch), mode="loss")
        loss, parts = self.model.parse_losses(losses)  # type: ignore[operator]
        options: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": len(batch["inputs"])}
        self.log("train_loss", loss, prog_bar=True, sync_dist=True, **options)
        self.log_dict({f"train_{k}": v for k, v in parts.items() if k != "loss"}, sync_dist=True, **options)
        self.log("lr", self.trainer.optimizers[0].param_groups[-1]["lr"], on_step=True, on_epoch=False)
        return loss

    def _prepared(self, batch: Batch) -> dict[str, Any]:
        """The batch on the model's device, normalised and padded."""
        preprocessor: Any = self.model.get_submodule("data_preprocessor")
        preprocessor.to(self.device)  # it keeps a note of its own about its device
        data: dict[str, Any] = preprocessor(batch, self.training)
        return data

    def check_batch(self, batch: Batch) -> None:
        """Refuse labels that the model has no class for.

        Raises:
            InputError: naming the image.
        """

    def setup(self, stage: str) -> None:
        """Take the class names and colours from the data; before training, name what of the config is not used."""
        if stage == "fit" and self.unused:
            rank_zero_warn(self.unused)
        data = getattr(self.trainer, "datamodule", None)
        self.class_names = list(getattr(data, "classes", ())) or self.class_names
        self.palette = list(getattr(data, "palette", ())) or self.palette

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add the predictions of one batch to the validation metric."""
        self._evaluate(batch, batch_idx, self.trainer.val_dataloaders, self.val_score)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Add the predictions of one batch to the test metric."""
        self._evaluate(batch, batch_idx, self.trainer.test_dataloaders, self.test_score)

    def _evaluate(self, batch: Batch, batch_idx: int, loader: Any, score: Metric | MetricCollection) -> None:
        self.check_batch(batch)
        predictions = self(batch)
        own = len(predictions) - padding_in_batch(loader, batch_idx, len(predictions))
        self.update_metric(score, predictions[:own])
        if not self.trainer.sanity_checking:
            for sample in predictions[: self.sheet.wanted(len(loader))]:
                self.sheet.keep(self.draw_truth(sample), self.draw(sample))

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, list[Any]]:
        """One row an image for ``predictions.csv``, and its overlay in the run folder.

        Returns:
            Columns ``file``, ``overlay`` and those of :meth:`write_prediction`.
        """
        folder = run_folder(self.trainer) or Path(self.trainer.default_root_dir)
        rows = []
        for sample in self(batch):
            overlay = folder / "overlays" / f"{self.prediction_name(sample)}.png"
            image = Image.fromarray(self.draw(sample).permute(1, 2, 0).numpy())
            with whole_file(overlay) as unfinished:
                image.save(unfinished, format="png")
            rows.append(
                {"file": str(Path(sample.img_path)), "overlay": str(overlay), **self.write_prediction(sample, folder)}
            )
        return {name: [row[name] for row in rows] for name in rows[0]}

    def prediction_name(self, sample: Any) -> str:
        """What the files of an image are called: the data's name for it, which no other has, else the image's."""
        names = getattr(getattr(self.trainer, "datamodule", None), "prediction_names", {})
        return str(names.get(sample.img_path, Path(sample.img_path).stem))

    def write_prediction(self, sample: Any, folder: Path) -> dict[str, Any]:
        """Keep or write what was predicted for one image; gives further columns of its row."""
        raise NotImplementedError

    def draw(self, sample: Any) -> Tensor:
        """The image of a data sample with what was predicted, (3, H, W) uint8."""
        raise NotImplementedError

    def draw_truth(self, sample: Any) -> Tensor:
        """The image of a data sample with what is true, (3, H, W) uint8."""
        raise NotImplementedError

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the class names and colours, which are not known without the training data."""
        checkpoint["class_names"] = list(self.class_names)
        checkpoint["palette"] = [list(colour) for colour in self.palette]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the class names and colours."""
        self.class_names = checkpoint.get("class_names", self.class_names)
        self.palette = checkpoint.get("palette", self.palette)

    def update_metric(self, score: Metric | MetricCollection, predictions: list[Any]) -> None:
        """Add predictions, which hold the truth too, to a metric."""
        raise NotImplementedError

    def on_validation_epoch_end(self) -> None:
        """Log the metric of the whole split."""
        self._log_score("val", self.val_score)

    def on_test_epoch_end(self) -> None:
        """Log the metric of the whole split."""
        self._log_score("test", self.test_score)

    def _log_score(self, split: str, score: Metric | MetricCollection) -> None:
        values = self.named_values(score.compute())
        score.reset()
        pictures = self.sheet.take()
        if pictures is not None:
            titles = ["truth | prediction"] * len(pictures)
            draw_figure(self.trainer, "examples", partial(image_sheet, pictures, titles, columns=2, width=4.5))
        self.log_dict({f"{split}_{name}": value for name, value in values.items()}, prog_bar=True)

    def named_values(self, computed: Any) -> dict[str, Tensor]:
        """What is logged of a computed metric, by name."""
        raise NotImplementedError
