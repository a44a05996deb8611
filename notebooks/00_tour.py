# %% [markdown]
# # A tour of LarKit
#
# One backbone from its name to its inference form: make it, look at its maps, load weights, train it, fold it, compare
# speed and outputs, and see how far it looks. One CPU core is enough, and nothing is downloaded.

# %%
import tempfile
from itertools import islice
from pathlib import Path

import matplotlib.pyplot as plt
import skimage
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform
from timm.utils import random_seed
from torch.nn import functional as F

import core  # importing it puts the backbones into timm's registry
from core.analysis import effective_receptive_field, model_cost, receptive_field_figure
from core.reparam import dilated_to_dense, embed_kernel, fold_bn
from vision import Digits
from vision.feature_map import PixelMap

random_seed(0)
print(", ".join(timm.list_models(["unireplknet*", "replknet*"])))

# %% [markdown]
# ## A model and its maps
#
# These names are ordinary timm models: `num_classes`, `in_chans`, `drop_path_rate`, `features_only` mean what they mean
# there. `features_only=True` gives the maps of the four stages, at 1/4, 1/8, 1/16 and 1/32 of the image's sides.
#
# Each panel below shows the three principal components of a map's channels as red, green and blue. The weights are
# random: the early maps follow the photo's edges and colors, the late ones show how coarse their grid is.

# %%
photo = Image.fromarray(skimage.data.astronaut())
x = create_transform(224, is_training=False)(photo)[None]
backbone = timm.create_model("unireplknet_a", features_only=True).eval()
with torch.no_grad():
    maps = backbone(x)


def principal_colors(stage):
    places = stage.flatten(1).T - stage.flatten(1).mean(dim=1)  # one row of channels for each place
    _, _, directions = torch.pca_lowrank(places, q=3)
    ranks = (places @ directions).argsort(dim=0).argsort(dim=0)  # ranks instead of values: all of the contrast shows
    return (ranks / (len(places) - 1)).view(*stage.shape[1:], 3)


figure, panels = plt.subplots(1, 5, figsize=(12, 2.8), layout="constrained")
panels[0].imshow(photo.resize((224, 224)))
panels[0].set_title("image, 3 x 224 x 224")
for panel, stage in zip(panels[1:], maps, strict=True):
    panel.imshow(principal_colors(stage[0]))
    panel.set_title(" x ".join(map(str, stage.shape[1:])))
for panel in panels:
    panel.axis("off")

# %% [markdown]
# ## Weights
#
# With a network, `timm.create_model("unireplknet_s", pretrained=True)` downloads the published weights. A file goes to
# `core.load_weights`: an official `.pth`, safetensors, a Lightning checkpoint. Names of tensors are the official ones.
# Here a classifier is saved first. It loads into an equal model, its stages load into the `features_only` model above,
# and mismatches are reported by name.

# %%
classifier = timm.create_model("unireplknet_a", num_classes=10).eval()
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder, "weights.safetensors")
    save_file(classifier.state_dict(), file)
    same = core.load_weights(timm.create_model("unireplknet_a", num_classes=10).eval(), file)
    core.load_weights(backbone, file)
    try:
        core.load_weights(timm.create_model("unireplknet_a", num_classes=10, depths=(2, 2, 5, 2)), file)
    except core.errors.InputError as error:
        print(str(error).replace(folder, "..."), "\n")

with torch.no_grad():
    print("same logits:", torch.equal(same(x), classifier(x)))
    print("same last map:", torch.equal(backbone(x)[-1], classifier.forward_features(x)))

# %% [markdown]
# ## A few steps of training
#
# The backbone is a plain `nn.Module`, so that a plain loop trains it; `01_images` does it with Lightning. Half of A's
# blocks are plenty for digits of 28 x 28 pixels. Forty steps are not the end of learning: they give the batch norms
# below something to fold.

# %%
data = Digits(batch_size=50, num_workers=0)
data.setup("fit")
own = {"num_classes": 10, "in_chans": 1, "depths": (1, 1, 3, 1), "layer_scale_init_value": 0.1}
model = timm.create_model("unireplknet_a", **own)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
losses = []
feature_map = PixelMap(data.mean, data.std)  # from pixels to what the network reads
for pixels, labels in islice(data.train_dataloader(), 40):
    loss = F.cross_entropy(model(feature_map(pixels)), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())

pixels, labels = next(iter(data.val_dataloader()))
images = feature_map(pixels)
with torch.no_grad():
    logits = model.eval()(images)
print(f"{len(losses)} steps: loss {losses[0]:.2f} -> {losses[-1]:.2f}")
print(f"right on {(logits.argmax(dim=1) == labels).float().mean():.0%} of {len(labels)} validation digits")

# %% [markdown]
# ## Folding
#
# While it trains, each large kernel has dilated small kernels beside it, each with a batch norm. Afterwards they merge
# into the large one, and norms go into the layer before them. `core.reparameterize` returns a new model and leaves the
# trained one as it is. The outputs are the same up to rounding in float32.

# %%
folded = core.reparameterize(model)
with torch.no_grad():
    difference = (folded(images) - logits).abs().max()
print(f"logits of up to {logits.abs().max():.1f} differ by at most {difference:.0e}")
for name, form in {"trained": model, "folded": folded}.items():
    count = sum(p.numel() for p in form.parameters())
    print(f"{name}: {len(list(form.modules()))} modules, {count / 1e6:.2f} million parameters")

# %% [markdown]
# Both forms are timed in turns, so that whatever else the machine does slows both. The ratio depends on the machine,
# its threads and the size of the images, and `lightning cost` measures yours; the count of multiplications does not. It
# hardly falls here: most multiplications are those of the 1 x 1 layers, which folding leaves as they are.

# %%
trained_cost, folded_cost = model_cost(model, (1, 64, 64), batch_size=4, rounds=9)
ratio = folded_cost.images_per_second / trained_cost.images_per_second
print(f"multiplications: {trained_cost.macs / 1e6:.0f} million, folded {folded_cost.macs / 1e6:.0f} million")
print(f"speed of the folded form here, by the median of 9 rounds: {ratio:.2f} x that of the trained form")

# %% [markdown]
# ## What merges
#
# One channel of a 13 x 13 block, written out with the pieces of `core.reparam`: each branch's batch norm is folded into
# its kernel, dilation is written as zeros between the taps, and the kernels are added up. The last panel is what
# `core.reparameterize` left in the folded model: besides this sum it holds the block's own norm, which follows and
# scales the channel, so that it equals the sum up to a factor.

# %%
block, channel = model.stages[2][0].dwconv, 3
branches = {"13 x 13": (block.lk_origin, block.origin_bn)}
for k, r in block.branches:
    conv, norm = (block.get_submodule(f"dil_{part}_k{k}_{r}") for part in ("conv", "bn"))
    branches[f"{k} x {k}, dilation {r}"] = conv, norm
kernels = {}
for name, (conv, norm) in branches.items():
    weight, _ = fold_bn(conv.weight, conv.bias, norm)
    kernels[name] = embed_kernel(dilated_to_dense(weight, conv.dilation), 13)[channel, 0].detach()
kernels["their sum"] = sum(kernels.values())
kernels["in the folded model"] = folded.stages[2][0].dwconv.lk_origin.weight[channel, 0].detach().double()

figure, panels = plt.subplots(2, 4, figsize=(10, 5.4), layout="constrained")
for panel, (name, kernel) in zip(panels.flat, kernels.items(), strict=True):
    largest = kernel.abs().max()
    panel.imshow(kernel, cmap="RdBu", vmin=-largest, vmax=largest)
    panel.set(title=name, xticks=[], yticks=[])

factor = (kernels["in the folded model"] / kernels["their sum"]).flatten()
print(f"factor at each of the 169 taps: {factor.min():.6f} to {factor.max():.6f}")

# %% [markdown]
# ## How far a model looks
#
# The effective receptive field: how strongly each pixel of the input moves the center of the last map, averaged over
# images, here over twenty digits of 128 x 128 pixels. A new model sees a square and no further: what its strided
# convolutions reach, since a new block adds little to its input. Forty steps later the large kernels take part. Below
# the panels stands how small a square holds 20, 30, 50 and 99 percent.

# %%
random_seed(0)
new = timm.create_model("unireplknet_a", **own).eval()
large = Digits(size=128, batch_size=20, num_workers=0)
large.setup("validate")
pixels, _ = next(iter(large.val_dataloader()))
digits = feature_map(pixels)
fields = {name: effective_receptive_field(net, [digits]) for name, net in {"new": new, "after 40 steps": model}.items()}
receptive_field_figure(fields, f"effective receptive fields, {len(digits)} digits at 128 x 128")

# %% [markdown]
# On the command line the same is `lightning erf`, for checkpoints and for any timm model. Next: `01_images` trains a
# classifier, `07_in_your_own_code` puts the backbone into other libraries.
