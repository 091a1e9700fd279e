"""What the gradient of a score says of places: at the input, and at the maps of a layer (Grad-CAM)."""

from collections.abc import Callable
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fsg_jax._checks import did_you_mean, expect
from fsg_jax.explain.maps import forward_of
from fsg_jax.models.spatial_attention import Maps
from fsg_jax.typing import AnyArray, Images, Variables

Target: TypeAlias = Int[AnyArray, " _batch"] | Callable[[Any], Float[Array, " _batch"]]
"""A class index for each image, whose logit is the score; or a function from the outputs to scores (batch,), such as
``lambda logits: logits[:, 0]`` for a binary classifier."""


def input_gradient(model: nn.Module, variables: Variables, images: Images, target: Target) -> Maps:
    """``max_c |d score / d image_c|`` at each pixel, (batch, height, width), float32 (Simonyan et al. 2014, section 3).

    In evaluation, where the score of an image depends on that image alone. The gradient is that to the normalised
    image.

    Args:
      model: the network.
      variables: its variables, by collection.
      images: (batch, height, width, channels), normalised.
      target: of which score; a class that there is not gives NaN.

    Raises:
      ValueError: `target` gives no score for each image.
    """

    def total(images: Array) -> Array:
        outputs, _ = forward_of(model).evaluate(dict(variables), (images,))
        return _scores(outputs, target, len(images)).sum()

    return jnp.abs(jax.grad(total)(images)).max(-1).astype(jnp.float32)


def class_activation(
    model: nn.Module, variables: Variables, images: Images, layer: str, target: Target, *, rectify: bool = True
) -> Maps:
    """Grad-CAM (Selvaraju et al. 2017, equations 1 and 2) at a layer: ``relu(sum_k w_k A_k)``, float32.

    ``A`` is the output of the layer, ``w_k`` the sum over space of ``d score / d A_k``. The paper takes the mean, the
    same map but for the factor of the number of positions; with the sum it is CAM (Zhou et al. 2016) with the weights
    of the class, where global mean pooling and one linear layer follow the layer: the mean of that map plus the bias is
    the logit. CAM does not rectify.

    Args:
      model: the network; for one with `remat`, its twin without, which computes the same, is used.
      variables: its variables, by collection.
      images: (batch, height, width, channels), normalised.
      layer: path of a module, called once, whose output is (batch, rows, columns, channels): a name of
        `activation_layers`, such as ``"layer4_1"`` of a ResNet.
      target: of which score; a class that there is not gives NaN.
      rectify: drop what speaks against the score.

    Returns:
      Maps of the size of the layer, (batch, rows, columns).

    Raises:
      ValueError: the model has no such layer; or `target` gives no score for each image.
    """
    layers = activation_layers(model, variables, images)
    known = f"a layer with maps: {', '.join(layers)}"
    expect(layer in layers, "layer", known, f"{layer!r}{did_you_mean(layer, layers)}")

    def total(added: Array) -> tuple[Array, Array]:
        outputs, seen = _watched(model, variables, images, layer, added)
        return _scores(outputs, target, len(images)).sum(), seen[layer][0]

    slopes, maps = jax.grad(total, has_aux=True)(jnp.zeros(layers[layer], jnp.float32))
    found = jnp.einsum("bhwc,bc->bhw", maps.astype(jnp.float32), slopes.sum((1, 2)))
    return nn.relu(found) if rectify else found


def activation_layers(model: nn.Module, variables: Variables, images: Images) -> dict[str, tuple[int, ...]]:
    """Shape of the output of every module that is called once and gives maps, by its path, in the order of the calls.

    Nothing is computed. Modules inside others come before these; dropout, which gives what it is given, is left out.
    """
    found: dict[str, tuple[int, ...]] = {}

    def trace() -> None:
        seen = _watched(model, variables, images)[1]
        found.update({path: outputs[0].shape for path, outputs in seen.items() if len(outputs) == 1})

    jax.eval_shape(trace)
    return {path: shape for path, shape in found.items() if path and len(shape) == 4}


def _watched(
    model: nn.Module, variables: Variables, images: Images, layer: str | None = None, added: Any = None
) -> tuple[Any, dict[str, list[Array]]]:
    """Outputs of the model, and of each module by path what its calls give; `added` is added to those of `layer`."""
    model = model.clone(remat=False) if getattr(model, "remat", False) else model  # what is inside could not get out
    seen: dict[str, list[Array]] = {}

    def watch(next_fun: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        output = next_fun(*args, **kwargs)
        own = context.method_name == "__call__" and not isinstance(context.module, nn.Dropout)
        if own and isinstance(output, jax.Array) and context.module.scope is not None:
            path = "/".join(context.module.path)
            output = output + added.astype(output.dtype) if path == layer else output
            seen.setdefault(path, []).append(output)
        return output

    with nn.intercept_methods(watch):
        outputs, _ = forward_of(model).evaluate(dict(variables), (images,))
    return outputs, seen


def _scores(outputs: Any, target: Target, batch: int) -> Float[Array, " _batch"]:
    if callable(target):
        scores = target(outputs)
        found = getattr(scores, "shape", type(scores).__name__)
        expect(found == (batch,), "target", f"a function that gives scores ({batch},)", found)
        return scores
    logits = isinstance(outputs, jax.Array) and outputs.ndim == 2
    expect(logits, "target", "a function of the outputs, for they are no logits (batch, classes)", "class indices")
    target = jnp.asarray(target)
    whole = target.shape == (batch,) and jnp.issubdtype(target.dtype, jnp.integer)
    expect(whole, "target", f"{batch} integers, a class for each image", f"{target.dtype} {target.shape}")
    chosen = target[:, None] == jnp.arange(outputs.shape[1])[None]
    weights = jnp.where(chosen.any(1, keepdims=True), chosen, jnp.nan).astype(outputs.dtype)
    return (weights * outputs).sum(1)
