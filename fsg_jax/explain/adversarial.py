"""Adversarial examples in a ball of the largest norm: FGSM (Goodfellow et al. 2015) and PGD (Madry et al. 2018).

Images are in [0, 1], before normalisation: ``loss_fn`` includes it, with the network in evaluation. A network whose
gradient vanishes, as behind a saturated softmax, is not robust for that (Athalye et al. 2018, arXiv 1802.00420): see
`largest_gradient`. Where a network scales gradients on their way back (`fsg_jax.route`, ``branch_gradient="mean"``),
attack its twin that does not.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from jaxtyping import Key as Keys

from fsg_jax._checks import check_integer, check_nonnegative, expect
from fsg_jax.typing import Images

LossFn: TypeAlias = Callable[[Images], Float[Array, " batch"]]
"""From images in [0, 1] to the loss of each, which depends on no other image."""

Size: TypeAlias = float | Float[Array, ""]
"""In units of the range of the images, such as 8 / 255."""


def fgsm(loss_fn: LossFn, images: Images, epsilon: Size) -> Images:
    """``clip(x + epsilon * sign(d loss / d x), 0, 1)``, the fast gradient sign method (arXiv 1412.6572, section 4).

    Args:
      loss_fn: what is made larger.
      images: (batch, height, width, channels), floating point, in [0, 1].
      epsilon: the largest change of a value, at least 0.

    Returns:
      As `images`, an example each, which does not depend on the others. Values whose gradient is 0 stay.

    Raises:
      ValueError: `images` are not in [0, 1], `epsilon` is negative (both where values are known, not in a traced
        function), or `loss_fn` does not give one loss an image.
    """
    _check(images, epsilon=epsilon)
    return project(images + epsilon * jnp.sign(loss_gradient(loss_fn, images)), images, epsilon)


def pgd(
    loss_fn: LossFn,
    images: Images,
    epsilon: Size,
    *,
    step: Size,
    steps: int,
    key: Keys[Array, ""] | Keys[Array, " batch"],
) -> Images:
    """Steps of `step` times the sign of the gradient, each projected to the ball around the image and to [0, 1].

    The start is uniform in the ball, projected to [0, 1]; the last iterate is given (arXiv 1706.06083, section 2.1).

    Args:
      loss_fn: what is made larger.
      images: (batch, height, width, channels), floating point, in [0, 1].
      epsilon: radius of the ball, the largest change of a value, at least 0.
      step: length of a step, at least 0; ``steps * step`` should be above `epsilon`, often 10 steps of a quarter.
      steps: how many, 1 or more; static.
      key: draws the starts; one key, by which the start of an image depends on its place in the batch, or a key an
        image, (batch,), by which it does not.

    Returns:
      As `images`.

    Raises:
      ValueError: as `fgsm`; `step` is negative; `steps` is below 1.
    """
    _check(images, epsilon=epsilon, step=step)
    check_integer("steps", steps, 1)

    def climb(_: Any, x: Array) -> Array:
        return project(x + step * jnp.sign(loss_gradient(loss_fn, x)), images, epsilon)

    return jax.lax.fori_loop(0, steps, climb, random_start(images, epsilon, key))


def random_start(images: Images, epsilon: Size, key: Keys[Array, ""] | Keys[Array, " batch"]) -> Images:
    """Where `pgd` starts, which has the arguments."""
    keys = key if key.ndim else jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(len(images)))
    noise = jax.vmap(lambda key: jax.random.uniform(key, images.shape[1:], images.dtype, -1, 1))(keys)
    return project(images + epsilon * noise, images, epsilon)


def project(x: Images, images: Images, epsilon: Size) -> Images:
    """The point nearest to `x` in the ball of radius `epsilon` around `images` and in [0, 1]."""
    low, high = jnp.maximum(images - epsilon, 0), jnp.minimum(images + epsilon, 1)
    return jnp.clip(x, low, high).astype(images.dtype)


def loss_gradient(loss_fn: LossFn, images: Images) -> Images:
    """The gradient of each image's loss with respect to that image, whatever the batch: the losses are summed.

    Raises:
      ValueError: `loss_fn` does not give one loss an image.
    """

    def total(x: Array) -> Array:
        losses = loss_fn(x)
        expect(losses.shape == images.shape[:1], "loss_fn", f"losses of shape {images.shape[:1]}", losses.shape)
        return losses.sum()

    return jax.grad(total)(images)


def largest_gradient(loss_fn: LossFn, images: Images) -> Float[Array, " batch"]:
    """The largest absolute value of each image's gradient; 0 where no attack by gradients can move the image.

    Raises:
      ValueError: as `loss_gradient`.
    """
    return jnp.abs(loss_gradient(loss_fn, images)).max((1, 2, 3))


def _check(images: Array, **sizes: Any) -> None:
    """Raises ValueError where known values are out of their range."""
    check_nonnegative(**{name: float(v) for name, v in sizes.items() if not isinstance(v, jax.core.Tracer)})
    if not isinstance(images, jax.core.Tracer):
        values = np.asarray(images)  # inside a traced function JAX would trace the minimum too
        low, high = float(values.min()), float(values.max())
        expect(low >= 0 and high <= 1, "images", "values in [0, 1], before normalisation", f"{low:g} to {high:g}")
