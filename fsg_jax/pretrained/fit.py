"""Variables of a model that is loaded: compared with the model, and fitted to other classes, gates, channels, sizes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from fsg_jax._checks import check_integer, expect
from fsg_jax.models.experts import ExpertHead
from fsg_jax.models.multistream import MultiStream, get_channels
from fsg_jax.models.positions import resize_positions, square
from fsg_jax.pretrained.adapt import adapt_stem
from fsg_jax.pretrained.model_json import to_json
from fsg_jax.pretrained.names import Path
from fsg_jax.pretrained.preprocessing import Preprocessing
from fsg_jax.typing import Key

STEMS = (("conv1",), ("stem_conv",), ("stage1_0", "conv"), ("patch_embed", "proj"), ("patch_embed", "conv1"))
POSITIONS: Path = ("params", "pos_embed")
HEAD: Path = ("params", "head")


class Pretrained(NamedTuple):
    """A pretrained model.

    Attributes:
      model: a module of `fsg_jax.models`.
      variables: for ``model.apply``, and for ``init_state(..., variables=variables)``.
      preprocessing: how its images were prepared; None if the file does not say.
    """

    model: nn.Module
    variables: dict[str, Any]
    preprocessing: Preprocessing | None


def example(model: nn.Module, params: Mapping[str, Any]) -> Any:
    """An input with the channels and the number of patches for which `params` are, by stream if there are several."""
    if isinstance(model, MultiStream):
        return {stream: _example(params.get(stream, {}), stream) for stream in get_channels(model.streams)}
    if isinstance(model, ExpertHead):
        kernel = flatten_dict(params, sep="/").get("level1/experts/fc0/kernel")
        expect(np.ndim(kernel) == 3, "params", "level1/experts/fc0/kernel with three axes", np.shape(kernel))
        return np.zeros((1, np.shape(kernel)[1]), np.float32)
    return _example(params, "params")


def _example(params: Mapping[str, Any], name: str) -> jax.Array:
    flat = flatten_dict(params)
    stem = next((flat[(*path, "kernel")] for path in STEMS if (*path, "kernel") in flat), None)
    expect(stem is not None and np.ndim(stem) == 4, name, "the kernel of a stem", "none")
    size, channels = stem.shape[0], stem.shape[2]  # type: ignore[union-attr]
    size = 2 * (size - 1) if ("patch_embed", "conv1", "kernel") in flat else size  # overlapping patches
    if ("pos_embed",) not in flat:
        return jnp.zeros((1, 32, 32, channels))
    patches = flat[("pos_embed",)].shape[1] - (("cls_token",) in flat)
    return jnp.zeros((1, patches * size, size, channels))


def shapes_of(model: nn.Module, x: Any) -> dict[Path, Any]:
    """Shapes of the variables by path; nothing is computed."""
    return flatten_dict(jax.eval_shape(model.init, jax.random.key(0), x))


def fit(
    loaded: Pretrained,
    *,
    num_classes: int | None,
    gate: Any,
    in_channels: int | None,
    image_size: int | tuple[int, int] | None,
    positions: str,
    key: Key,
    name: str,
) -> Pretrained:
    """`loaded` for other classes, gates, channels and image sizes; arguments as in `load_pretrained`.

    Args:
      loaded: complete, and as it was saved.
      positions: the rule by which positions are resized.
      name: where it comes from, for errors.
    """
    model, flat, preprocessing = loaded.model, flatten_dict(loaded.variables), loaded.preprocessing
    if isinstance(model, MultiStream):
        given = {"in_channels": in_channels, "image_size": image_size}
        other = [argument for argument, value in given.items() if value is not None]
        expect(not other, ", ".join(other), "None for a model of several streams", "a value")
    if num_classes is not None and num_classes != getattr(model, "num_classes", None):
        linear = hasattr(model, "num_classes") and getattr(model, "head", None) is None
        expect(linear, "num_classes", f"None, as the head of {name} is no linear layer", num_classes)
        check_integer("num_classes", num_classes, 0)
        flat = {path: leaf for path, leaf in flat.items() if path[:2] != HEAD}
        model = model.clone(num_classes=num_classes)
    if gate is not None and model.gate is None:
        model = model.clone(gate=gate)
    elif gate is not None:
        same = to_json(gate, "gate") == to_json(model.gate, "gate")
        expect(
            same, "gate", f"None, for {name} has gates or fixed scales of its own (fold gates first: fold_gates)", gate
        )
    if in_channels is not None:
        stem = next(path for part in STEMS if (path := ("params", *part, "kernel")) in flat)
        flat[stem] = adapt_stem(np.asarray(flat[stem]), in_channels)
        preprocessing = preprocessing and preprocessing.with_channels(in_channels)
    if image_size is not None:
        size = (image_size, image_size) if isinstance(image_size, int | np.integer) else image_size
        expect(len(size) == 2, "image_size", "one side or (height, width)", image_size)
        for side in size:
            check_integer("image_size", side, 1)
        if POSITIONS in flat:
            flat[POSITIONS] = _resized(model, flat, preprocessing, size, positions, name)
            if model.grid is not None:
                model = model.clone(grid=(size[0] // model.patch_size, size[1] // model.patch_size))
        preprocessing = preprocessing and preprocessing.resized(size)
    flat = {path: jnp.asarray(leaf) for path, leaf in flat.items()}
    x = example(model, unflatten_dict(flat)["params"])
    if missing := shapes_of(model, x).keys() - flat.keys():  # a new head, new gates
        init = jax.jit(lambda key: {p: v for p, v in flatten_dict(model.init(key, x)).items() if p in missing})
        flat |= init(key)
    return Pretrained(model, unflatten_dict(flat), preprocessing)


def _resized(
    model: nn.Module,
    flat: Mapping[Path, Any],
    preprocessing: Preprocessing | None,
    size: tuple[int, ...],
    rule: str,
    name: str,
) -> np.ndarray:
    table, patch = np.asarray(flat[POSITIONS]), model.patch_size
    expect(not (size[0] % patch or size[1] % patch), "image_size", f"multiples of the patches' {patch} pixels", size)
    count = table.shape[1] - (("params", "cls_token") in flat)
    known = preprocessing and tuple(side // patch for side in preprocessing.size)
    old = model.grid or known or square(count, f"{name}: pos_embed")
    expect(old[0] * old[1] == count, f"{name}: pos_embed", f"{old[0]} x {old[1]} positions", count)
    return resize_positions(table, (old[0], old[1]), (size[0] // patch, size[1] // patch), rule)
