"""Where a network looks: attention maps, gradients of scores, what maps have in numbers, and attacks on images."""

from fsg_jax.explain.adversarial import fgsm, largest_gradient, pgd
from fsg_jax.explain.gradients import activation_layers, class_activation, input_gradient
from fsg_jax.explain.localisation import binarise, jaccard, points_inside
from fsg_jax.explain.maps import attention_maps, global_descriptors, map_entropy, resize_maps, transferred_maps

__all__ = [
    "activation_layers",
    "attention_maps",
    "binarise",
    "class_activation",
    "fgsm",
    "global_descriptors",
    "input_gradient",
    "jaccard",
    "largest_gradient",
    "map_entropy",
    "pgd",
    "points_inside",
    "resize_maps",
    "transferred_maps",
]
