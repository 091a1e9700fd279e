"""ViG-T/4 (gated linear attention) on CIFAR-100 at 32x32, from scratch: the recipe of cifar100_vit_tiny, other blocks.

    python -m experiments.ablate cifar100_vig_tiny --data.path PATH --seeds 3 --arms baseline fsg_gr softmax \\
        softmax_fsg_gr no_locality no_locality_fsg_gr no_directions no_directions_fsg_gr output_heads output_elements \\
        static_output output_heads_fsg_gr --out runs/vig

Arms beside the usual ones: softmax attention in the same blocks; gated linear attention without locality, and without
gates for each direction; a gate on the outputs of the attention that depends on the input, one value a head or a
channel (output_heads, output_elements), a static one there (static_output). Each but
the last has a twin, NAME_fsg_gr, with gates on the branches.

5.61 million parameters against 5.38 million of cifar100_vit_tiny, 4.4 % more. This configuration has not been run to
its end here; a reduced one has, see experiments/results/cifar100_vig_cpu.
"""

from dataclasses import replace
from typing import Any

from experiments.config import ARMS, AddedArm, ViG
from experiments.configs import cifar100_vit_tiny

OUTPUT = cifar100_vit_tiny.OUTPUT
VARIANTS: dict[str, dict[str, Any]] = {
    "softmax": {"model.mixer": "softmax"},
    "no_locality": {"model.locality": False},
    "no_directions": {"model.directional": False},
    **{name: arm for name, arm in OUTPUT.items() if name != "static_output"},
}
GATED = {f"{name}_fsg_gr": overrides | ARMS["fsg_gr"] for name, overrides in VARIANTS.items()}
STATIC = {"static_output": OUTPUT["static_output"]}

CONFIG = replace(
    cifar100_vit_tiny.CONFIG,
    name="cifar100_vig_tiny",
    model=ViG(drop_path=0.1),
    added_arms=tuple(AddedArm(name, tuple(arm.items())) for name, arm in (VARIANTS | GATED | STATIC).items()),
)

SPACE = cifar100_vit_tiny.SPACE
