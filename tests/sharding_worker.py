"""Training on eight virtual devices and on one; run by test_sharding.py, for which it writes a report as JSON."""

import json
import sys
import warnings
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fsg_jax as fsg
from experiments.bench.collectives import list_collectives, summarise_collectives
from fsg_jax import augment
from fsg_jax.training.sharding import make_mesh, shard_batch, shard_state, state_shardings

SMALL = 2048
"""Bytes: BatchNorm's all-reduces of the tiny ResNet are below, those of its weight gradients above."""
MIN_SIZE = 256
STEPS = 3


def resnet():
    block = fsg.models.BasicBlock
    return fsg.models.ResNet(stage_sizes=(1, 1), block=block, num_classes=8, width=8, gate=fsg.Gate)


def vit():
    return fsg.create_model(
        "vit_tiny", num_classes=8, gate=fsg.Gate, dim=32, depth=1, num_heads=2, patch_size=8, dropout=0.1, drop_path=0.1
    )


MODELS = {"resnet": resnet(), "vit": vit()}
TX = fsg.routed(
    params=optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.05, momentum=0.9)), gates=optax.adam(0.02)
)
NORMALIZE = augment.normalize(0.5, 0.25)
AUGMENT = augment.chain(augment.random_crop(2), augment.random_flip(), NORMALIZE)
MASKED = augment.chain(AUGMENT, lambda key, data: {**data, "valid": jnp.arange(16) % 3 > 0})
MIXUP = augment.chain(AUGMENT, augment.mixup(0.4, 8))


@cache
def initial(name):
    inputs = np.zeros((1, 16, 16, 3), np.float32)
    return fsg.init_state(MODELS[name], TX, jax.random.key(0), inputs, ema_decay=0.9)


def new_state(name, mesh=None):
    return place(initial(name), mesh)


def place(state, mesh):
    """A copy of the state: on one device, or split over the mesh."""
    return jax.tree.map(jnp.copy, state) if mesh is None else shard_state(state, mesh, min_size=MIN_SIZE)


def batch(seed, mesh=None, size=16):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (size, 16, 16, 3), dtype=np.uint8)
    data = {"image": images, "label": rng.integers(0, 8, size).astype(np.int32)}
    return data if mesh is None else shard_batch(data, mesh)


@cache
def compiled_step(name, routing, mesh, transform, **kwargs):
    state = new_state(name, mesh)
    if mesh is not None:
        kwargs["shardings"] = state_shardings(state, mesh, min_size=MIN_SIZE)
    step = fsg.make_train_step(fsg.losses.cross_entropy, routing, transform=transform, **kwargs)
    return step.lower(state, batch(0, mesh)).compile()


@cache
def run(name, routing, mesh=None, *, transform=AUGMENT, **kwargs):
    """The state after some steps, and the last metrics."""
    step = compiled_step(name, routing, mesh, transform, **kwargs)
    return train(step, new_state(name, mesh), range(STEPS), mesh)


def train(step, state, seeds, mesh):
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    for seed in seeds:
        state, metrics = step(state, batch(seed, mesh))
    jax.tree.map(_check_sharding, state, shardings)
    return state, metrics


def collectives(step, state):
    """Count and bytes by kind, the layers that the small reductions come from, and the bytes of weight matrices."""
    found = list_collectives(step)
    sources = {c.name.split("/")[-2].split(":")[-1] for c in found if c.kind == "all-reduce" and c.nbytes < SMALL}
    return {
        "totals": {k: (v["count"], v["bytes"]) for k, v in summarise_collectives(found, small=SMALL).items()},
        "sources": sorted(sources),
        "weight_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state.params) if leaf.ndim > 1),
    }


def _check_sharding(leaf, sharding):
    assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim), (leaf.sharding, sharding)


def values(state):
    return jax.device_get((state.variables, state.opt_state, state.ema))


def distance(a, b):
    """Largest difference over the leaves, relative to the largest value of a leaf."""
    pairs = zip(jax.tree.leaves(values(a)), jax.tree.leaves(values(b)), strict=True)
    return max(float(np.max(np.abs(x - y)) / (np.max(np.abs(x)) + 1e-6)) for x, y in pairs)


def compare(name, routing, mesh, *, transform=AUGMENT, **kwargs):
    one, metrics = run(name, routing, transform=transform, **kwargs)
    many, sharded_metrics = run(name, routing, mesh, transform=transform, **kwargs)
    return collectives(compiled_step(name, routing, mesh, transform, **kwargs), many) | {
        "distance": distance(one, many),
        "loss": [float(metrics["loss"]), float(sharded_metrics["loss"])],
        "split": sum(not leaf.is_fully_replicated for leaf in jax.tree.leaves(many)),
    }


def checkpoints(folder, mesh):
    """Saved half-way on eight devices, restored on one and continued, and the reverse."""
    straight, _ = run("vit", "sequential")
    distances = {}
    for name, before, after in ("8 to 1", mesh, None), ("1 to 8", None, mesh), ("8 to 8", mesh, mesh):
        step = compiled_step("vit", "sequential", before, AUGMENT)
        saved, _ = train(step, new_state("vit", before), range(1), before)
        checkpointer = fsg.Checkpointer(folder / name)
        checkpointer.save(saved)
        restored = checkpointer.restore(new_state("vit", after)).state
        checkpointer.close()
        exact = distance(saved, restored)
        step = compiled_step("vit", "sequential", after, AUGMENT)
        state, _ = train(step, restored, range(1, STEPS), after)
        distances[name] = [exact, distance(straight, state)]
    return distances


def evaluation(mesh):
    """A split state on a split batch, padding included, and the same on one device."""
    pair = []
    for place in None, mesh:
        state = new_state("vit", place)
        shardings = None if place is None else state_shardings(state, place, min_size=MIN_SIZE)
        evaluate = fsg.make_eval_step(fsg.losses.cross_entropy, transform=NORMALIZE, shardings=shardings)
        data = batch(5) | {"valid": np.arange(16) < 13}
        metrics = evaluate(state, data if place is None else shard_batch(data, place))
        pair.append(jax.tree.map(float, metrics))
    return pair


def nested(mesh):
    """A batch of several streams lies on the devices row by row."""
    data = batch(0)
    streams = {"image": {"rgb": data["image"], "depth": data["image"][..., :1]}, "label": data["label"]}
    placed = shard_batch(streams, mesh)
    shards = placed["image"]["depth"].addressable_shards
    return [len(shards), *shards[3].data.shape, int(shards[3].index[0].start)]


def message(call):
    try:
        call()
    except ValueError as error:
        return str(error)
    return "no error"


CHECKS = {
    "resnet sequential": lambda folder: compare("resnet", "sequential", make_mesh()),
    "resnet joint": lambda folder: compare("resnet", "joint", make_mesh()),
    "vit sequential": lambda folder: compare("vit", "sequential", make_mesh()),
    "vit joint": lambda folder: compare("vit", "joint", make_mesh()),
    "vit every": lambda folder: compare("vit", "sequential", make_mesh(), gate_every=2),
    "vit accumulate": lambda folder: compare("vit", "joint", make_mesh(), accumulate=2),
    "vit masked": lambda folder: compare("vit", "sequential", make_mesh(), transform=MASKED, accumulate=2),
    "vit mixup": lambda folder: compare("vit", "joint", make_mesh(), transform=MIXUP),
    "vit fsdp": lambda folder: compare("vit", "sequential", make_mesh(fsdp=4)),
    "resnet fsdp": lambda folder: compare("resnet", "joint", make_mesh(fsdp=8)),
    "checkpoints": lambda folder: checkpoints(folder / "copies", make_mesh()),
    "checkpoints fsdp": lambda folder: checkpoints(folder / "split", make_mesh(fsdp=4)),
    "evaluation": lambda folder: evaluation(make_mesh(fsdp=4)),
    "nested": lambda folder: nested(make_mesh()),
    "odd batch": lambda folder: message(lambda: batch(0, make_mesh(), size=12)),
    "odd mesh": lambda folder: message(lambda: make_mesh(fsdp=3)),
}


def main(folder, names):
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")  # as in pyproject.toml
    jax.config.update("jax_numpy_rank_promotion", "raise")
    report = {name: CHECKS[name](folder) for name in names}
    (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
