"""Weights that runs start from: read once, told apart by a digest, and put into the state at step 0."""

import dataclasses
from collections.abc import Mapping
from functools import cache, partial
from typing import Any, TypeVar

import flax.linen as nn
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

import fsg_jax as fsg
from experiments.config import BaseExperiment, change
from experiments.errors import UserError
from fsg_jax._checks import expect
from fsg_jax._files import json_digest
from fsg_jax.gates.sites import factory_of
from fsg_jax.linen.gate_kinds import kind_of
from fsg_jax.models.norms import FASTER
from fsg_jax.training.checkpoint_files import checksums
from fsg_jax.typing import GATES, PyTree

E = TypeVar("E", bound=BaseExperiment)

OWN = {
    *("name", "parent", "num_classes", "gate", "gate_placement", "conv"),
    *("dropout", "drop_path", "dtype", "remat"),
}
"""Attributes of a model that the experiment sets; all others must be those of the file."""

NEW = ("head", "fc1")
"""Modules that start by the seed where a file has none: what is joined to a backbone."""


@cache
def load(source: str, channels: int, image_size: int | None, part: str = "backbone") -> Any:
    """The `fsg_jax.pretrained.Pretrained` of a source, for images with that many channels and of that size.

    Without its gates and head if `part` is the backbone.

    Raises:
      UserError: the source cannot be read, or does not say by which means and deviations images are normalised.
    """
    try:
        classes = {"backbone": 0, "all": None}[part]
        found = fsg.load_pretrained(source, num_classes=classes, in_channels=channels, image_size=image_size)
        expect(found.preprocessing, source, "weights that come with their mean and std", "weights without")
    except (ValueError, OSError, ImportError) as error:
        raise UserError(f"model.pretrained: {error}") from error
    kept = {name: tree for name, tree in found.variables.items() if name != GATES or part == "all"}
    return found._replace(variables=kept)


def statistics(source: str, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, in [0, 1], with which the weights were trained."""
    found = load(source, channels, None).preprocessing
    return found.mean, found.std


def pin(experiment: E) -> E:
    """`experiment` with the digest and the widths of its weights, if it has any: a run is never resumed with others.

    Raises:
      UserError: they cannot be read, or have another digest than the experiment asks for.
    """
    source, wanted = (getattr(experiment.model, name, None) for name in ("pretrained", "pretrained_digest"))
    if source is None:
        if wanted is not None:
            raise UserError(f"model.pretrained_digest: expected None without model.pretrained, found {wanted}")
        return experiment
    part, streams = experiment.model.pretrained_part, getattr(experiment.model, "streams", ())
    if streams and part != "backbone":
        raise UserError(f"model.pretrained_part: expected 'backbone', all that streams share, found {part!r}")
    weights = load(source, 3, None, part)
    found, widths = digest(weights), tuple(sorted(weights.model.widths.items()))
    if streams:
        widths = tuple((f"{stream}/{name}", width) for stream in streams for name, width in widths)
    if wanted not in (None, found):
        raise UserError(f"model.pretrained: expected weights with the digest {wanted}, found {found} in {source}")
    return change(experiment, {"model.pretrained_digest": found, "model.widths": widths})


def digest(weights: Any) -> str:
    """The SHA-256 of the names, shapes, dtypes and CRC-32 of all leaves, and of the preprocessing."""
    leaves = flatten_dict(weights.variables, sep="/")
    return json_digest([checksums(leaves), weights.preprocessing._asdict()])


def starting_from(variables: PyTree, model: nn.Module, parts: Mapping[str, Any]) -> PyTree:
    """`variables` of `model` with those of pretrained backbones in their place.

    Gates and the modules in `NEW` stay as they are if the weights have none.

    Args:
      variables: at step 0, by the seed.
      model: of which they are.
      parts: from `load`, by the name of the backbone in the model; ``""`` is the model itself.

    Raises:
      ValueError: a backbone is not the one of its weights, and in what; or leaves that do not fit, all of which are
        named.
    """
    flat, given = flatten_dict(variables), {}
    for name, weights in parts.items():
        backbone = model._backbone(name=None, parent=None) if name else model
        check_same(backbone, weights.model)
        for (collection, *path), leaf in flatten_dict(weights.variables).items():
            given[collection, *filter(None, [name]), *path] = leaf
        if GATES in weights.variables and model.gate is not None:
            ours, theirs = (kind_of(m.gate(name=None)) for m in (backbone, weights.model))
            expect(ours == theirs, "arm.kind", f"that of model.pretrained, {theirs!r}", repr(ours))
    new = [path for path in flat if path[0] == GATES or path[1] in NEW]
    absent = {path[:2] for path in new} - {path[:2] for path in given}
    wanted = {path: leaf for path, leaf in flat.items() if path not in new or path[:2] not in absent}
    shapes = [{path: jnp.shape(leaf) for path, leaf in leaves.items()} for leaves in (wanted, given)]
    differ = sorted("/".join(path) for path, _ in shapes[0].items() ^ shapes[1].items())
    expect(not differ, "model.pretrained", "the leaves of the model", f"others: {', '.join(dict.fromkeys(differ))}")
    return unflatten_dict(flat | {path: jnp.asarray(leaf, flat[path].dtype) for path, leaf in given.items()})


def check_same(model: nn.Module, of_file: nn.Module) -> None:
    """Raises ValueError unless the models differ in the attributes `OWN` alone."""
    expect(type(model) is type(of_file), "model.name", f"a {type(of_file).__name__}, as in the file", model)
    for name in (f.name for f in dataclasses.fields(of_file) if f.name not in OWN):
        found, wanted = getattr(model, name), getattr(of_file, name)
        same = _by_options(found) == _by_options(wanted)
        expect(same, f"model: {name}", f"that of model.pretrained, {wanted!r}", found)


def _by_options(value: Any) -> Any:
    """A factory of a norm as what it computes and its options, whichever class does so; other values as they are."""
    own = factory_of(value)
    norm = next((slow for fast, slow in FASTER.items() if own in (fast, slow)), None)
    if norm is None:
        return value
    return (norm, value.args, value.keywords) if isinstance(value, partial) else (norm, (), {})
