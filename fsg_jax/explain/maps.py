"""Attention maps of a network, all from the forward pass that gives the logits; their size and their entropy."""

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float

from fsg_jax._checks import check_integer, expect
from fsg_jax.linen.forward import Forward, find_flag
from fsg_jax.models.arguments import takes
from fsg_jax.models.spatial_attention import ATTENTION, DESCRIPTORS, Maps
from fsg_jax.typing import Images, Variables

Descriptors = Float[Array, "_descriptions _channels"]


def attention_maps(
    model: nn.Module, variables: Variables, images: Images, *, query: Descriptors | None = None
) -> tuple[Any, dict[str, Maps]]:
    """Outputs of a model in evaluation, and its attention maps by name, of the same forward pass.

    A `VGG` or `PreActResNet` with attention has a map a level, ``level1`` (the largest) to ``level3``: its weights over
    the positions of the level, which sum to 1 under softmax and are in (0, 1) each under sigmoid. A `ViT` with class
    token and the attention of its own has a map a block, ``blocks_0`` and so on: what the class token pays to the
    patches, a mean over heads; the sum over the patches is 1 minus what the token pays to itself. In later blocks a
    patch has mixed with others and stands for more than itself, which attention rollout (Abnar and Zuidema 2020) would
    follow and this does not. Maps are float32, those of a model in bfloat16 too. Pure; for `jax.jit` close over the
    model; names then come sorted as text, ``blocks_10`` before ``blocks_2``.

    Args:
      model: a Flax module that is called with images.
      variables: by collection.
      images: (batch, height, width, channels), normalised.
      query: global descriptors (batch, channels) in the place of the images' own, for `VGG` and `PreActResNet`; see
        `transferred_maps`.

    Returns:
      The outputs, and (batch, rows, columns) by name, in the order of the layers.

    Raises:
      ValueError: the model has no maps; or `query` is given and the model takes none, or ignores it: the additive score
        under softmax, where it adds the same everywhere, so that the maps would be the plain ones.
    """
    named = {} if query is None else {"query": query}
    if query is not None:
        expect(takes(model, "query"), "query", "None for a model without a global descriptor", type(model).__name__)
        ignored = (getattr(model, "score", None), getattr(model, "normalise", None)) == ("additive", "softmax")
        heeding = "dot or additive_tanh, or sigmoid in place of softmax, for maps under another query"
        expect(not ignored, "score", heeding, "additive with softmax, which ignores the query")
    outputs, captured = forward_of(model).evaluate(dict(variables), (images,), (ATTENTION,), **named)
    flat = flatten_dict(captured.get(ATTENTION, {}))
    having = "attention over space: VGG and PreActResNet with attention, ViT with class token and its own attention"
    expect(flat, type(model).__name__, f"{having} (gates act on channels and have no maps over space)", "none")
    maps = {"/".join(p for p in path[:-1] if p != "attn") or path[-1]: leaf for path, leaf in flat.items()}
    maps = {name: leaf.mean(1) if leaf.ndim == 4 else leaf for name, leaf in maps.items()}
    return outputs, {name: maps[name] for name in sorted(maps, key=layer_order)}


def layer_order(name: str) -> list[Any]:
    """A key by which names sort as their layers follow: numbers in them by value."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def global_descriptors(model: nn.Module, variables: Variables, images: Images) -> Descriptors:
    """The global descriptors ``g`` of images, (batch, channels): the queries of a `VGG` or `PreActResNet`.

    Raises:
      ValueError: the model has none.
    """
    _, captured = forward_of(model).evaluate(dict(variables), (images,), (DESCRIPTORS,))
    found = captured.get(DESCRIPTORS, {}).get("query")
    expect(found is not None, type(model).__name__, "a VGG or PreActResNet, which have a global descriptor", "none")
    return found


def transferred_maps(
    model: nn.Module, variables: Variables, images: Images, templates: Float[Array, "_descriptions _h _w _c"]
) -> dict[str, Maps]:
    """Maps of images under the global descriptors of other images (Jetley et al. 2018, query-driven attention).

    The paper does this with the dot score, ``softmax(<l_i, g>)``. The logits under another query are left out: they
    are of no image.

    Args:
      model: as in `attention_maps`.
      variables: as in `attention_maps`.
      images: as in `attention_maps`.
      templates: one image, whose descriptor all images get, or as many as `images`.

    Raises:
      ValueError: as in `attention_maps`, or there is another number of templates.
    """
    query, batch = global_descriptors(model, variables, templates), len(images)
    expect(len(query) in (1, batch), "templates", f"1 or {batch} images", len(query))
    return attention_maps(model, variables, images, query=jnp.broadcast_to(query, (batch, query.shape[1])))[1]


def resize_maps(maps: Maps, size: tuple[int, int]) -> Float[Array, "_batch _height _width"]:
    """Maps at another size in pixels, by bilinear interpolation with half-pixel centres.

    Values stay what they were: weights of the positions of the small map, which no longer sum to 1. A size below that
    of the maps filters first (`jax.image.resize` with antialiasing).

    Args:
      maps: (batch, rows, columns).
      size: height and width, that of the images, say.
    """
    check_integer("height", size[0], 1)
    check_integer("width", size[1], 1)
    return jax.image.resize(maps, (len(maps), *size), "linear")


def map_entropy(maps: Maps) -> Float[Array, " _batch"]:
    """Entropy of each map over that of a uniform one, in [0, 1]: 0, all at one position; 1, the same everywhere.

    ``-sum_i p_i log(p_i) / log(n)``, ``p`` the map over its sum. A map of one position has 0, one of zeros NaN.

    Args:
      maps: (batch, rows, columns), values of at least 0.
    """
    flat = maps.reshape(len(maps), -1)
    shares = flat / flat.sum(1, keepdims=True)
    return jax.scipy.special.entr(shares).sum(1) / jnp.log(max(flat.shape[1], 2))


def forward_of(model: nn.Module) -> Forward:
    """Calls a model in evaluation, whatever the name of its flag."""
    return Forward(model, find_flag(model, "auto"), (), ())
