"""Where a network looks: attention maps of one forward pass, gradients of scores, and what maps have in numbers."""

from fsg_jax.explain.gradients import activation_layers, class_activation, input_gradient
from fsg_jax.explain.maps import attention_maps, global_descriptors, map_entropy, resize_maps, transferred_maps

__all__ = [
    "activation_layers",
    "attention_maps",
    "class_activation",
    "global_descriptors",
    "input_gradient",
    "map_entropy",
    "resize_maps",
    "transferred_maps",
]
