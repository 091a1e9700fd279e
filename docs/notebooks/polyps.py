# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---

# %% [markdown]
# # Polyps of a phantom, and where the network looks
#
# Sizing polyps in mm, from made-up colonoscopy: polyps of known size, rendered in a lit tube, at distances that do
# not follow their size. **Synthetic; it shows how the parts work, and nothing about real polyps.** A small VGG with
# attention over space and gates on its channels learns the size; then we look at its maps.
#
# ## Data: the set, its index, its folds
#
# The phantom has the layout of REAL-Colon, and is read by the very same commands.

# %% language="bash"
# rm -rf build/phantom
# python -m experiments.phantom --out build/phantom/raw --layout real-colon --polyps 48 --frames 6
# python -m experiments.index real-colon build/phantom/raw --out build/phantom/index
# python -m experiments.split build/phantom/index --out build/phantom/splits.csv --folds 3

# %% [markdown]
# Folds are dealt by patient. Fold 0 tests, the next one validates, the rest trains.

# %%
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

import fsg_jax as fsg
from fsg_jax.endoscopy import sizing
from fsg_jax.endoscopy.frames.source import FrameSource
from fsg_jax.endoscopy.index.roles import roles
from fsg_jax.endoscopy.index.schema import read_index
from fsg_jax.endoscopy.index.split_files import read_folds

data, size = Path("build/phantom"), 48
table, roots = read_index(data / "index")
role = roles(table, read_folds(data / "splits.csv"), fold=0)
source = FrameSource(table, roots, size=size)
polyp = np.array(table.column("polyp_id").to_pylist())
print(f"{len(table)} frames; polyps to train, validate, test:", *(len(set(polyp[rows])) for rows in role[:3]))


def read(rows):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *(source[int(row)] for row in rows))


frames = {name: read(rows) for name, rows in zip(("train", "validation", "test"), role, strict=False)}

# %% [markdown]
# The network is given the frame with everything but the polyp's box blanked, the stream `mask` of the paper: then
# both the appearance and the place are there, and the size is no matter of the box alone.

# %%
prepare = fsg.augment.chain(fsg.endoscopy.box_to_mask(), fsg.endoscopy.make_streams(["mask"], size))
seen = prepare(jax.random.key(0), frames["test"])["image"]["mask"]
figure, axes = plt.subplots(2, 6, figsize=(9, 3.2), layout="constrained")
for i, column in zip(range(0, 36, 6), axes.T, strict=True):
    column[0].imshow(frames["test"]["frame"][i])
    column[0].set_title(f"{frames['test']['size_mm'][i]:.0f} mm", fontsize=9)
    column[1].imshow(
        np.clip(seen[i] * np.array(fsg.endoscopy.ENDOSCOPY_STD) + np.array(fsg.endoscopy.ENDOSCOPY_MEAN), 0, 1)
    )
for axis in axes.flat:
    axis.axis("off")
plt.show()

# %% [markdown]
# ## Train, by gradient routing
#
# The loss is that of the paper's gated models: smooth L1, larger polyps weighing more; the gate loss has other
# weights.

# %%
from fsg_jax.models.spatial_attention import SpatialAttention

target = sizing.make_target("regression")
options = {"attention": SpatialAttention, "normalise": "softmax", "dropout": 0.0, "conv_dropout": (0.0, 0.0)}
model = fsg.create_model("vgg16", num_classes=target.num_outputs, width=8, gate=fsg.Gate, **options)
steps = 220
tx = fsg.routed(params=optax.adamw(optax.cosine_decay_schedule(3e-3, steps), weight_decay=1e-4), gates=optax.adam(3e-3))
state = fsg.init_state(model, tx, jax.random.key(0), seen[:1])
turn = fsg.augment.chain(
    fsg.endoscopy.box_to_mask(), fsg.endoscopy.paired_flip(), fsg.endoscopy.make_streams(["mask"], size)
)
step = fsg.make_train_step(
    target.loss, gate_loss=target.gate_loss, transform=turn, inputs=lambda batch: batch["image"]["mask"]
)
draw, losses = np.random.default_rng(0), []
for _ in range(steps):
    rows = draw.integers(len(role.train), size=16)
    state, metrics = step(state, jax.tree.map(lambda leaf: leaf[rows], frames["train"]))
    losses.append(metrics["loss"])
print(f"loss {np.mean(losses[:20]):.4f} in the first 20 steps, {np.mean(losses[-20:]):.4f} in the last")

# %% [markdown]
# ## Errors, beside two predictors without a network


# %%
@jax.jit
def predict(images):
    return target.decode(model.apply(state.variables, images, train=False))["predicted_mm"]


def areas(name):
    return sizing.relative_area(frames[name]["box"], size, size)


truth, of = frames["test"]["size_mm"], polyp[role.test]
predictors = {
    "network": predict(seen),
    "box area": sizing.fit_box_area(frames["train"]["size_mm"], areas("train"), polyp[role.train])(areas("test")),
    "mean size": sizing.fit_mean(frames["train"]["size_mm"], polyp[role.train])(areas("test")),
}
for name, predicted in predictors.items():
    by_polyp = sizing.aggregate_sizes(of, np.float64(truth), np.float64(predicted))
    error = np.abs(by_polyp.predicted_mm - by_polyp.size_mm)
    print(f"{name:10} mean absolute error of {len(error)} polyps {error.mean():.2f} mm")

# %%
figure, axis = plt.subplots(figsize=(4, 3.6), layout="constrained")
axis.plot([0, 20], [0, 20], color="0.7", linewidth=1)
for name, colour in (("box area", "0.6"), ("network", "tab:orange")):
    axis.plot(truth, predictors[name], ".", color=colour, alpha=0.6, label=name)
axis.set(xlabel="size, mm", ylabel="predicted, mm, a dot a frame")
axis.legend()
plt.show()

# %% [markdown]
# ## Where it looks
#
# The maps of the forward pass that made the prediction: the weight of the local feature at each place; those of a map
# sum to 1. The colours run from the smallest to the largest value of a map.

# %%
from fsg_jax.explain import attention_maps, map_entropy, resize_maps

_, maps = attention_maps(model, state.variables, seen)
print({name: f"{m.shape[1]}x{m.shape[2]}, entropy {map_entropy(m).mean():.2f}" for name, m in maps.items()})
figure, axes = plt.subplots(1 + len(maps), 6, figsize=(9, 1.5 * (1 + len(maps))), layout="constrained")
for i, column in zip(range(0, 36, 6), axes.T, strict=True):
    column[0].imshow(frames["test"]["frame"][i])
    x0, y0, x1, y1 = frames["test"]["box"][i]
    column[0].add_patch(plt.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color="white"))
    for axis, (name, found) in zip(column[1:], maps.items(), strict=True):
        axis.imshow(frames["test"]["frame"][i])
        axis.imshow(resize_maps(found[i : i + 1], (size, size))[0], alpha=0.55, cmap="magma")
        if i == 0:
            axis.text(-0.1, 0.5, name, rotation=90, va="center", ha="right", transform=axis.transAxes)
for axis in axes.flat:
    axis.axis("off")
plt.show()

# %% [markdown]
# How much of a map lies in the box, beside the share of the frame that the box takes: a map that knows nothing of the
# polyp has both alike.

# %%
inside = fsg.endoscopy.box_to_mask()(jax.random.key(0), frames["test"])["mask"]
print(f"the box takes {inside.mean():.2f} of the frame")
for name, found in maps.items():
    large = resize_maps(found, (size, size))
    print(f"{name}: {((large * inside).sum((1, 2)) / large.sum((1, 2))).mean():.2f} of the map is in it")

# %% [markdown]
# A map says what the network weighed, not what decided its answer; measured on real frames, attention was worse than
# a map that always points to the centre ([Attention maps](../attention_maps.md)). The gates of this network:

# %%
for name, values in fsg.gate_values(state).items():
    print(f"{name}: mean {values.mean():.2f}, from {values.min():.2f} to {values.max():.2f}")

# %% [markdown]
# The whole experiment, with folds, streams, seeds, cached frames and a report with intervals over polyps, is `python
# -m experiments.ablate polyp_phantom`; see [Polyp sizing](../polyps.md).
