# %% [markdown]
# # Point clouds: a shape becomes views
#
# Points have no order and no grid. Seen from one side they have both: each point falls on a pixel, and its features are
# drawn there. A net for images reads such views.

# %%
import logging
import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
import trimesh
from lightning import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from matplotlib import pyplot as plt
from PIL import Image
from sklearn.neighbors import NearestCentroid

from pointcloud import DigitClouds, PointCloudClassifier, PointViews
from pointcloud.feature_map import unit_sphere
from pointcloud.files import read_cloud
from pointcloud.views import pose_matrices

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # the page shows what the cells print, and no hints
logging.getLogger("trimesh").setLevel(logging.ERROR)
warnings.simplefilter("ignore")
seed_everything(0, verbose=False)
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## From a file to a map
#
# A chair of six boxes as a mesh, in the format of ModelNet40. `read_cloud` draws 2,048 points from its surface.


# %%
def box(size, center):
    """A box of (width, height, depth) around a point, with y up."""
    return trimesh.creation.box(size, trimesh.transformations.translation_matrix(center))


legs = [box((5, 45, 5), (x, 22.5, z)) for x in (-20, 20) for z in (-20, 20)]
chair = trimesh.util.concatenate([*legs, box((45, 5, 45), (0, 47.5, 0)), box((45, 50, 4), (0, 75, -20.5))])
chair.export(folder / "chair.off")
cloud = read_cloud(folder / "chair.off", 2048)
print(f"{len(chair.vertices)} vertices, {len(chair.faces)} triangles; points {cloud.shape} in centimeters")

# %% [markdown]
# `PointViews` does the rest. It moves the points into the unit sphere, turns them so that z points up, and keeps 512
# that lie far from each other. It computes a feature of each point from its neighbors, draws it at the point's pixels,
# and a small image branch makes colors of that. These are the first four of the ten published views: the cloud is
# tilted, then seen from four sides. The layers are trained together with the net. Here they are not trained yet, so the
# colors mean nothing, but the shape is there.

# %%
views = PointViews(num_points=512, num_views=4, obj_size=48, neighbors=16, dim=16, fusion=False).eval()
raw = torch.from_numpy(cloud)[None]
with torch.no_grad():
    points = views.sample(raw)[0]
    images = views(raw, pose_matrices(torch.tensor([0.8]), torch.tensor([-0.4])))
print(f"points {tuple(raw.shape)} to views {tuple(images.shape)}")
pictures = (images.unflatten(1, (4, 3))[0] * views.std + views.mean).clamp(0, 1)

figure = plt.figure(figsize=(9, 2.3), layout="constrained")
solid = figure.add_subplot(1, 5, 1, projection="3d", xticks=[], yticks=[], zticks=[], title="points")
solid.scatter(*points.T, s=1, c=points[:, 2])
solid.set_box_aspect((1, 1, 1), zoom=1.2)
solid.set(xlim=(-0.7, 0.7), ylim=(-0.7, 0.7), zlim=(-0.7, 0.7))
for i, picture in enumerate(pictures):
    axes = figure.add_subplot(1, 5, i + 2, title=f"view {i}", xlabel="pixel")
    axes.imshow((picture - picture.min()).permute(1, 2, 0) / (picture.max() - picture.min()), interpolation="nearest")
plt.show()

# %% [markdown]
# ## Training
#
# The data are handwritten digits whose ink has become points; `shots` takes 50 clouds of each class. Two small views
# are enough for them. The task takes the class names and the number of points from the data.

# %%
data = DigitClouds(shots=50, batch_size=50, num_workers=0)
frontal = {"theta": [-0.1, 0.1], "phi": [-0.6, -0.4], "scale": [0.9, 1.1]}
angles = {"val_theta": [0], "val_phi": [-0.5], "test_theta": [0], "test_phi": [-0.5]}  # multiples of pi
task = PointCloudClassifier(
    "unireplknet_a",
    spec=data.spec(),
    num_views=2,
    obj_size=32,
    neighbors=8,
    dim=16,
    fusion=False,
    poses=frontal | angles,
    backbone_args={"depths": (1, 1, 1, 1), "dims": (24, 48, 96, 192), "layer_scale_init_value": 0.1},
    lr=4e-3,
    warmup_epochs=1,
)
trainer = Trainer(
    max_epochs=6,
    check_val_every_n_epoch=100,
    logger=CSVLogger(folder),
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(task, datamodule=data)
task.examples.size = 8  # of the sheet below
(measured,) = trainer.validate(task, datamodule=data, verbose=False)
print(f"accuracy on 500 other clouds: {measured['val_acc']:.3f}")

# %% [markdown]
# For comparison, the nearest centroid of simple features: how the points are spread along each axis.


# %%
def spread(clouds):
    """Histograms of x, y and z, and the labels."""
    rows = [
        (np.concatenate([np.histogram(axis, 8, (-1, 1))[0] for axis in unit_sphere(points).numpy().T]), label)
        for points, label in clouds
    ]
    return [np.array(column) for column in zip(*rows, strict=True)]


print(f"nearest centroid: {NearestCentroid().fit(*spread(data.train_set)).score(*spread(data.val_set)):.3f}")

# %% [markdown]
# The run folder has a sheet of some of these clouds, each drawn obliquely from above, with the two views that the net
# got and its answer; wrong answers are red.

# %%
run = Path(trainer.log_dir)
Image.open(run / "examples.png")

# %% [markdown]
# And the confusion matrix, digit against digit.

# %%
Image.open(run / "confusion_matrix.png")

# %% [markdown]
# ## A file of your own
#
# Meshes and clouds in .off, .obj, .ply, .stl, .npy, .txt or .pcd. A test cloud stands in for one, written as lines of
# x to the right, y up and z to the viewer. The task alone is enough: it knows how to read files, and the classes.

# %%
cloud, digit = data.test_set[450]
np.savetxt(folder / "question.txt", 20 * cloud.numpy())  # any unit will do
(answer,) = task.predict(folder / "question.txt")
print(f"{answer['class']}, probability {answer['probability']:.2f}; the digit is {digit}")

# %% [markdown]
# The task also takes points as they are, in a batch.

# %%
with torch.no_grad():
    probability = task.eval()(cloud[None]).softmax(dim=1)[0]
print(f"{task.class_names[int(probability.argmax())]}, probability {float(probability.max()):.2f}")

# %% [markdown]
# The same on the command line, for class folders of your own shapes (`pointcloud/README.md` has the rest):
#
#     lightning fit -c pointcloud/configs/folder.yaml --data.root shapes
#     lightning predict --ckpt_path lightning_logs/PointCloudClassifier/version_0 --data.predict_path new_shapes

# %%
shutil.rmtree(folder)
