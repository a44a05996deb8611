"""The point-cloud classifier."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self, cast

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection

from core.backbones import LargeKernelNet
from core.data.spec import DataSpec
from core.errors import InputError
from core.export import Exported
from core.training.classification import ClassificationTask
from core.training.plots import Examples
from core.training.task import Backbone
from pointcloud.augment import Poses
from pointcloud.data import PointDataModule, PointSpec
from pointcloud.feature_map import PointViews
from pointcloud.metrics import MeanClassAccuracy
from pointcloud.views import pixels, pose_matrices

__all__ = ["PointCloudClassifier", "ViewHead"]

PICTURE_SIDE = 120
"""Side of the drawing of a cloud in ``examples.png``, in pixels."""


class PointCloudClassifier(ClassificationTask):
    """:class:`core.training.ClassificationTask` for point clouds, whose views an image backbone reads.

    ``task(points)`` takes points (B, N, 3) in the unit of the files, and returns logits (B, num_classes). In training,
    each cloud gets a random pose; evaluation and prediction average the logits over a list of poses. Also logs
    ``val_macc`` (mean class accuracy), and the same for the test split; ``val_acc`` is the overall accuracy.

    Args:
        backbone: name of a LarKit or timm model for images, or a module with timm's methods.
        num_classes: number of classes; taken from the data where they are known.
        spec: description of the data; the command passes it.
        head: 'concat' for the published head on the concatenated features of all views, or 'mean' for the mean of the
            logits of the views.
        frozen: 'all' keeps all weights and statistics of the backbone as they were loaded; 'but_norms' trains only the
            parameters of the backbone whose names contain 'norm', as P2P does; 'none' trains everything. The feature
            map and the head are always trained.
        num_views: number of views V; the first ones of the ten published views are used.
        obj_size: side of the square into which an object is drawn, in pixels; even.
        img_size: side of the images, in pixels; by default ``obj_size``.
        neighbors: number of neighbors in the edge features, including the point itself.
        trans_dim: channels of the first features of a point.
        dim: channels of the maps before they become images.
        fusion: let the views attend to each other; requires an ``img_size`` divisible by 7.
        poses: changes to the defaults of :class:`pointcloud.augment.Poses`: theta, phi, scale, shift, val_theta,
            val_phi, test_theta, test_phi.
        label_smoothing: share of the target that is spread over the other classes.
        kwargs: the other arguments of :class:`core.training.Task`.

    Raises:
        InputError: if an argument is out of range, or contradicts the data.
    """

    spec_class: ClassVar[type[DataSpec]] = PointSpec
    data_class: ClassVar[type[PointDataModule]] = PointDataModule

    feature_map: PointViews
    spec: PointSpec

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int | None = None,
        *,
        spec: PointSpec | Mapping[str, Any] | None = None,
        head: Literal["concat", "mean"] = "concat",
        frozen: Literal["none", "all", "but_norms"] = "none",
        num_views: int = 4,
        obj_size: int = 224,
        img_size: int | None = None,
        neighbors: int = 32,
        trans_dim: int = 8,
        dim: int = 64,
        fusion: bool = True,
        poses: dict[str, Any] | None = None,
        label_smoothing: float = 0.2,
        **kwargs: Any,
    ) -> None:
        if head not in ("concat", "mean") or frozen not in ("none", "all", "but_norms"):
            raise InputError(
                f"head={head!r}, frozen={frozen!r}; expected 'concat' or 'mean', and 'none', 'all' or 'but_norms'"
            )
        if kwargs.get("mixup_alpha") or kwargs.get("cutmix_alpha"):
            raise InputError("clouds are not mixed; leave out mixup_alpha and cutmix_alpha")

        # The base class builds the feature map and the head from these.
        self.head: Literal["concat", "mean"] = head
        self.frozen: Literal["none", "all", "but_norms"] = frozen
        self.num_views = num_views
        self.obj_size = obj_size
        self.img_size = img_size
        self.neighbors = neighbors
        self.trans_dim = trans_dim
        self.dim = dim
        self.fusion = fusion
        super().__init__(backbone, num_classes, spec=spec, label_smoothing=label_smoothing, **kwargs)

        if label_smoothing > 1 - 1 / self.num_classes:
            raise InputError(f"label_smoothing={label_smoothing}; expected at most 1 - 1 / num_classes")
        try:
            self.poses = Poses(**(poses or {}))
        except TypeError as error:
            raise InputError(f"poses={poses}: {error}; expected fields of pointcloud.augment.Poses") from error

        self._apply_frozen(is_loaded=bool(kwargs.get("weights") or kwargs.get("pretrained")))
        self.examples = Examples(size=16, columns=4, width=3.0)

    # The model

    def build(self, backbone: nn.Module) -> None:
        """Build the feature map and the head."""
        super().build(backbone)
        self.check_channels()  # views have three channels even if the data are not known yet

        self.cls_head: ViewHead | None = None
        if self.head == "concat":
            model = cast(Any, backbone)
            model.reset_classifier(0)
            if isinstance(model, LargeKernelNet):
                model.norm.requires_grad_(False)  # unused: the head reads the map before this norm
            self.cls_head = ViewHead(self.num_views * model.num_features, self.num_classes)

    def build_feature_map(self, spec: PointSpec) -> PointViews:
        """Build the drawing of the views, which has trained weights."""
        return PointViews(
            load_points=spec.load_points,
            num_points=spec.num_points,
            normalize=spec.normalize,
            y_up=spec.y_up,
            num_views=self.num_views,
            obj_size=self.obj_size,
            img_size=self.img_size,
            neighbors=self.neighbors,
            trans_dim=self.trans_dim,
            dim=self.dim,
            fusion=self.fusion,
        )

    def get_classifier(self) -> nn.Module:
        """Return the last layer, whose weights are not loaded from a file with another number of classes."""
        if self.cls_head is None:
            return cast(Any, self.backbone).get_classifier()
        return self.cls_head.cls_head

    def _apply_frozen(self, *, is_loaded: bool) -> None:
        """Freeze the backbone as ``frozen`` says, and warn if it has random weights."""
        if self.frozen == "none":
            return
        if not is_loaded:
            rank_zero_warn(
                "the frozen backbone has random weights; set --model.pretrained true or --model.weights FILE"
            )

        for name, parameter in self.backbone.named_parameters():
            if self.frozen == "all" or "norm" not in name:
                parameter.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Set train or eval mode; a completely frozen backbone stays in eval mode."""
        super().train(mode)
        if self.frozen == "all":
            self.backbone.eval()
        return self

    # The flow

    def forward(self, points: Tensor) -> Tensor:
        """Return the logits of clouds, averaged over the poses of evaluation.

        Args:
            points: points (B, N, 3) in any unit, float32 or float64.

        Returns:
            Logits (B, num_classes).
        """
        sampled = self.feature_map.sample(points)
        features = self.feature_map.enc(sampled)
        dtype = next(self.backbone.parameters()).dtype

        # The features of a cloud are the same in all poses, and are computed only once.
        logits = []
        for pose in self.poses.grid(test=self._is_testing()).to(sampled):
            maps = self.feature_map.render(sampled, features, pose.expand(len(points), 3, 3))
            logits.append(self.read(maps.to(dtype)))
        return torch.stack(logits).mean(dim=0)

    def _is_testing(self) -> bool:
        return self._trainer is not None and bool(self._trainer.testing)

    def augment_batch(self, raw: Tensor, target: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        """Give each training cloud a random pose."""
        pose, shift = self.poses.draw(len(raw))
        return (raw, pose.to(raw.device), shift.to(raw.device)), target

    def read(self, maps: Tensor) -> Tensor:
        """Apply backbone and head to views (B, V * 3, H, W), and return logits (B, num_classes)."""
        images = maps.reshape(-1, maps.shape[1] // self.num_views, *maps.shape[2:])
        if self.cls_head is None:
            logits = super().read(images).unflatten(0, (-1, self.num_views)).mean(dim=1)
            if self._kept_features is not None:
                self._kept_features[-1] = self._kept_features[-1].unflatten(0, (-1, self.num_views)).mean(dim=1)
            return logits

        features = _pooled_features(self.backbone, images)
        if self._kept_features is not None:
            self._kept_features.append(features.float().unflatten(0, (-1, self.num_views)).mean(dim=1))
        return self.cls_head(features.unflatten(0, (-1, self.num_views)).flatten(1))

    def build_scores(self) -> MetricCollection:
        """Return the metrics of a split, with the mean class accuracy unless there are several labels."""
        scores = super().build_scores()
        if not self.spec.multi_label:
            scores.add_metrics({"macc": MeanClassAccuracy(self.num_classes)})
        return scores

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the criterion; the cross entropy of labels (B,) is smoothed over the other classes only."""
        if self.uses_bce:
            return super().loss(output, target)

        # torch spreads the smoothing over all classes, so the true class gets a part of it back.
        smoothing = self.label_smoothing * self.num_classes / (self.num_classes - 1)
        return F.cross_entropy(output, target, label_smoothing=smoothing)

    def use_spec(self, theirs: PointSpec) -> None:
        """Compare the classes with those of the data, and adopt all other options of the data.

        The numbers of points, the normalization and the vertical axis depend on the files and not on the weights, so a
        trained model can read other files with other options.

        Raises:
            InputError: if the data have other classes.
        """
        super().use_spec(theirs)
        self.store_spec(replace(theirs, classes=self.spec.classes, multi_label=self.spec.multi_label))
        self.feature_map.load_points = theirs.load_points
        self.feature_map.num_points = theirs.num_points
        self.feature_map.normalize = theirs.normalize
        self.feature_map.y_up = theirs.y_up

    def to_export(self, raw: tuple[Any, ...], source: Literal["raw", "map"]) -> Exported:
        """Return the backbone and the head, whose input is the views of a cloud.

        Raises:
            InputError: if the input should be points, because exporters cannot follow the loop that samples them.
        """
        if source == "raw":
            raise InputError("exporters cannot follow the loop that samples points; --from map exports the rest")
        return super().to_export(raw, source)

    # Pictures

    @torch.no_grad()
    def show(self, raw: Tensor) -> Tensor:
        """Return pictures (N, 3, h, w) in [0, 1]: each cloud (N, P, 3), seen obliquely from above, beside its views."""
        was_training = self.feature_map.training
        self.feature_map.eval()
        points = self.feature_map.sample(raw.to(self.device))
        pose = self.poses.grid(test=False)[0].to(points)
        views = self.feature_map.render(points, self.feature_map.enc(points), pose.expand(len(points), 3, 3))
        self.feature_map.train(was_training)

        views = views.unflatten(1, (-1, 3)) * self.feature_map.std + self.feature_map.mean
        return torch.cat([_drawings(points), _tiles(views)], dim=3)


class ViewHead(nn.Module):
    """The published head: a layer norm and a linear layer on the features of all views. Its tensor names are published.

    Args:
        dim: number of features of all views together.
        num_classes: number of logits.
    """

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.cls_head = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, num_classes) of features (B, dim)."""
        return self.cls_head(self.norm(x))


def _pooled_features(backbone: Any, images: Tensor) -> Tensor:
    """Return the mean over the last map, before any final norm, or the embedding of a network without maps."""
    features = backbone.forward_features(images)
    if features.ndim != 4:
        return backbone.forward_head(features, pre_logits=True)

    has_channels_last = getattr(backbone, "output_fmt", "NCHW") == "NHWC"
    return features.mean(dim=(1, 2) if has_channels_last else (2, 3))


def _tiles(views: Tensor) -> Tensor:
    """Arrange the views (N, V, 3, H, W) of each cloud in one or two rows of a picture, stretched to [0, 1]."""
    low = views.amin(dim=(1, 3, 4), keepdim=True)
    high = views.amax(dim=(1, 3, 4), keepdim=True)
    views = (views - low) / (high - low).clamp(min=1e-6)

    rows = min(2, views.shape[1])
    columns = math.ceil(views.shape[1] / rows)
    missing = rows * columns - views.shape[1]
    views = F.pad(views, (0, 0, 0, 0, 0, 0, 0, missing), value=1.0)

    side = PICTURE_SIDE // rows
    tiles = F.interpolate(views.flatten(0, 1), size=(side, side)).unflatten(0, (-1, rows, columns))
    return tiles.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def _drawings(points: Tensor) -> Tensor:
    """Draw clouds (N, P, 3) as gray pictures (N, 3, side, side), seen obliquely from above, with near points dark."""
    theta = points.new_tensor([0.25 * math.pi])
    phi = points.new_tensor([-0.35 * math.pi])
    seen = points @ pose_matrices(theta, phi)[0].T
    pixel = pixels(seen, PICTURE_SIDE)

    height = seen[..., 2] - seen[..., 2].amin(dim=1, keepdim=True)
    shade = 0.85 * (1 - height / height.amax(dim=1, keepdim=True).clamp(min=1e-6))

    # A point covers 2 x 2 pixels, and a pixel shows the nearest of its points.
    picture = shade.new_ones(len(seen), PICTURE_SIDE**2)
    for row in (0, 1):
        for column in (0, 1):
            index = (pixel[..., 0] + row) * PICTURE_SIDE + pixel[..., 1] + column
            picture.scatter_reduce_(1, index, shade, "amin")
    return picture.view(-1, 1, PICTURE_SIDE, PICTURE_SIDE).expand(-1, 3, -1, -1)
