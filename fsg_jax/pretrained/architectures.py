"""What a file of weights holds: its architecture, told by names and shapes, and how its images were prepared."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fsg_jax._checks import did_you_mean, expect
from fsg_jax.models.positions import square
from fsg_jax.models.resnet import RESNETS, BasicBlock, BatchNorm, Bottleneck
from fsg_jax.models.vit import VITS
from fsg_jax.pretrained.names import google_prefix, google_to_timm
from fsg_jax.pretrained.preprocessing import Preprocessing

IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (224, 224), 0.875, "bicubic")
TORCHVISION = IMAGENET._replace(interpolation="bilinear")
VIT = Preprocessing((0.5,) * 3, (0.5,) * 3, (224, 224), 0.9, "bicubic")
TF_LITE = Preprocessing((0.5,) * 3, (0.5,) * 3, (224, 224), 0.875, "bicubic")
LITE = Preprocessing((127 / 255,) * 3, (128 / 255,) * 3, (224, 224), 1.0, "bicubic")
"""``(x - 127) / 128``, as TensorFlow's Lite models were trained, of the centre square. The package says nothing of the
crop; TensorFlow's evaluation keeps 0.875."""


class Architecture(NamedTuple):
    """A name of `create_model`, arguments that it needs, and how images are prepared."""

    model: str
    options: Mapping[str, Any]
    preprocessing: Preprocessing


ARCHITECTURES: dict[str, Architecture] = {
    **{name: Architecture(name, {"stem": "imagenet"}, TORCHVISION) for name in RESNETS},
    **{f"{name}_patch16_224": Architecture(name, {}, VIT) for name in VITS},
    **{f"{name}_patch16_384": Architecture(name, {}, VIT.resized(384)._replace(crop=1.0)) for name in VITS},
    "efficientnet_b0": Architecture("efficientnet_b0", {}, IMAGENET),
    "tf_efficientnet_b0": Architecture("tf_efficientnet_b0", {}, IMAGENET),
    "efficientnet_lite0": Architecture("efficientnet_lite0", {"padding": "symmetric", "norm": BatchNorm}, IMAGENET),
    "tf_efficientnet_lite0": Architecture("efficientnet_lite0", {}, TF_LITE),
}
"""The architectures by timm's names, with the preprocessing of weights of timm's: torchvision's ``tv_in1k`` of ResNets,
``augreg_in21k_ft_in1k`` of ViTs, ``ra_in1k`` and ``in1k`` of EfficientNets; other weights may have another.

timm's ``efficientnet_lite0`` pads symmetrically; our model of that name, the original, is its
``tf_efficientnet_lite0``.
"""

PACKAGE = {
    "efficientnet_b0": Architecture("tf_efficientnet_b0", {}, IMAGENET),
    "efficientnet_lite0": Architecture("efficientnet_lite0", {}, LITE),
}
"""The same of the package ``efficientnet_pytorch``, whose convolutions are padded as TensorFlow's."""

UNSUPPORTED = re.compile(
    r"mask_token|register_tokens?|reg_token|storage_tokens|\bls[12]\.gamma|layer_scale[12]\.lambda1|\bmlp\.w(12|[123])\."
    r"|\brope"
)
"""Names of DINOv2's kind: LayerScale, mask and register tokens, SwiGLU, rotary positions."""


class Weights(NamedTuple):
    """Tensors in PyTorch's layout, and what they are of."""

    tensors: dict[str, np.ndarray]
    naming: str
    positions: str
    """Whose rule resizes the table of positions, see `fsg_jax.models.positions`."""
    architecture: Architecture


def recognise(tensors: Mapping[str, np.ndarray], file: str, hint: str, architecture: str | None) -> Weights:
    """Says what the tensors of a file are of.

    Args:
      tensors: by the names of the file.
      file: its name, for errors.
      hint: a text that may begin with the name of an architecture, such as the name of the file; asked only where
        names and shapes leave a choice.
      architecture: a key of `ARCHITECTURES`, with or without timm's tag behind a dot; None: what is found.

    Raises:
      ValueError: names of no known kind, or of several and neither `architecture` nor `hint` tells which; names of
        DINOv2's kind, all being listed; an unknown `architecture`, or one of another kind.
    """
    if other := [name for name in tensors if UNSUPPORTED.search(name)]:
        raise ValueError(
            f"{file}: expected no tensors of DINOv2's kind, which is not supported, found {', '.join(other)}"
        )
    if architecture is not None:
        architecture = architecture.partition(".")[0]
        known = ", ".join(ARCHITECTURES)
        expect(architecture in ARCHITECTURES, "architecture", f"one of {known}", _guess(architecture))
    if google_prefix(tensors) is not None:
        weights = _google(tensors, file)
    elif {"patch_embed.proj.weight", "pos_embed"} <= set(tensors):
        weights = Weights(dict(tensors), "timm", "timm", _vit(tensors, file, {}))
    elif "_conv_stem.weight" in tensors:
        lite = not any("._se_" in name for name in tensors)
        row = PACKAGE["efficientnet_lite0" if lite else "efficientnet_b0"]
        weights = Weights(dict(tensors), "efficientnet_pytorch", "timm", row)
    elif {"conv_stem.weight", "blocks.0.0.conv_dw.weight"} <= set(tensors):
        lite = not any(".se." in name for name in tensors)
        choices = [name for name in ARCHITECTURES if name.endswith("efficientnet_lite0" if lite else "efficientnet_b0")]
        name = architecture if architecture in choices else _from_hint(choices, hint, file)
        weights = Weights(dict(tensors), "timm", "timm", ARCHITECTURES[name])
    elif {"conv1.weight", "layer1.0.conv1.weight"} <= set(tensors):
        weights = Weights(dict(tensors), "timm", "timm", _resnet(tensors, file))
    else:
        first = ", ".join(list(tensors)[:4])
        ours = " (weights of save_pretrained? then give their folder)" if "params/" in first else ""
        kinds = "a ResNet, ViT or EfficientNet as timm, torchvision, efficientnet_pytorch or Google name them"
        raise ValueError(f"{file}: expected tensors of {kinds}, found {first}{ours}")
    if architecture is not None:
        table = PACKAGE if weights.naming == "efficientnet_pytorch" else ARCHITECTURES
        wanted, found = table.get(architecture, ARCHITECTURES[architecture]), weights.architecture
        same = wanted.model == found.model and (wanted.preprocessing.size == found.preprocessing.size)
        expect(same, file, f"tensors of {architecture}", f"those of {found.model} at {found.preprocessing.size}")
    return weights


def _guess(name: str) -> str:
    return f"{name!r}{did_you_mean(name, ARCHITECTURES)}"


def _from_hint(choices: list[str], hint: str, file: str) -> str:
    found = [name for name in choices if re.match(rf"{name}(?![a-z0-9])", hint.lower())]
    both = " or ".join(f"architecture={name!r}" for name in choices)
    why = "the same names and shapes, but other padding and BatchNorm"
    expect(found, file, f"{both}, or a file whose name begins with one of these", f"tensors of either: {why}")
    return found[0]


def _google(tensors: Mapping[str, np.ndarray], file: str) -> Weights:
    found, heads = google_to_timm(tensors, file)
    options = {"gelu": "tanh", "num_heads": heads, "interpolate": "google"}
    return Weights(found, "timm", "google", _vit(found, file, options))


def _vit(tensors: Mapping[str, np.ndarray], file: str, options: dict[str, Any]) -> Architecture:
    kernel, positions = tensors["patch_embed.proj.weight"], tensors["pos_embed"]
    expect(
        kernel.ndim == 4 and positions.ndim == 3,
        file,
        "a patch embedding and positions",
        (kernel.shape, positions.shape),
    )
    dim, patch = kernel.shape[0], kernel.shape[-1]
    depth = len({name.split(".")[1] for name in tensors if re.match(r"blocks\.\d+\.", name)})
    names = [name for name, row in VITS.items() if (row["dim"], row["depth"]) == (dim, depth)]
    if not names and "num_heads" not in options:
        table = ", ".join(f"{row['dim']} x {row['depth']} ({name})" for name, row in VITS.items())
        raise ValueError(
            f"{file}: expected a ViT of width x depth {table}, whose heads are known, found {dim} x {depth}"
        )
    (name,) = names[:1] or ["vit_tiny"]
    found = {"dim": dim, "depth": depth, "patch_size": patch, "class_token": "cls_token" in tensors}
    options = {k: v for k, v in {**found, **options}.items() if v != VITS[name].get(k)}
    if "fc_norm.weight" in tensors:
        options["pool"] = "avg"
    rows, columns = square(positions.shape[1] - found["class_token"], f"{file}: pos_embed")
    size = (rows * patch, columns * patch)
    return Architecture(name, options, VIT._replace(size=size, crop=0.9 if size == (224, 224) else 1.0))


def _resnet(tensors: Mapping[str, np.ndarray], file: str) -> Architecture:
    blocks = {match[1]: match[2] for match in map(re.compile(r"(layer\d+)\.(\d+)\.").match, tensors) if match}
    sizes = tuple(
        len({name.split(".")[1] for name in tensors if name.startswith(f"{layer}.")}) for layer in sorted(blocks)
    )
    block = Bottleneck if "layer1.0.conv3.weight" in tensors else BasicBlock
    stem = tensors["conv1.weight"].shape
    expect(stem[2:] == (7, 7), f"{file}: conv1.weight", "a stem of 7 x 7, that of ImageNet", f"shape {stem}")
    same = [name for name, row in RESNETS.items() if (row["stage_sizes"], row["block"]) == (sizes, block)]
    options: dict[str, Any] = {"stem": "imagenet"}
    options |= {} if same else {"stage_sizes": sizes, "block": block}
    options |= {} if stem[0] == 64 else {"width": stem[0]}
    return Architecture((same or ["resnet50"])[0], options, TORCHVISION)
