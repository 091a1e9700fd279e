"""Impossible arguments of models: one table; a message names the argument and what was found, whatever its wording."""

import functools

import flax.linen as nn
import pytest

from fsg_jax.gates.gate import Gate
from fsg_jax.models import Stage, create_model
from fsg_jax.models.arguments import check_factory

CASES = [
    ("resnet81", {}, ("'resnet81'", "'resnet18'")),
    ("resnet18", {"widht": 8}, ("'resnet18'", "'widht'", "'width'", "stem")),
    ("resnet18", {"parent": None}, ("'parent'",)),
    ("resnet18", {"stem": "vgg"}, ("stem", "'cifar', 'imagenet'", "'vgg'")),
    ("resnet18", {"gate_placement": "head"}, ("gate_placement", "'head'")),
    ("resnet18", {"width": 0}, ("width", "0")),
    ("resnet18", {"stage_sizes": ()}, ("stages", "0")),
    ("resnet18", {"stage_sizes": (1, 0)}, ("stage_sizes[1]", "0")),
    ("resnet18", {"num_classes": -1}, ("num_classes", "-1")),
    ("resnet18", {"norm": nn.BatchNorm()}, ("norm", "BatchNorm")),
    ("resnet18", {"gate": Gate()}, ("gate=Gate", "functools.partial")),
    ("vit_tiny", {"gate": Gate()}, ("gate=Gate", "functools.partial")),
    ("vit_tiny", {"depth": 0}, ("depth", "0")),
    ("vit_tiny", {"num_heads": 5}, ("num_heads", "5", "192")),
    ("vit_tiny", {"drop_path": 1.0}, ("drop_path", "[0, 1)", "1.0")),
    ("vit_tiny", {"pool": "max"}, ("pool", "'token', 'avg'", "'max'")),
    ("vit_tiny", {"class_token": False}, ("pool", "class_token")),
    ("vit_tiny", {"mixer": nn.Dense(3)}, ("mixer", "Dense")),
    ("vit_tiny", {"stem": "cifar"}, ("'vit_tiny'", "'stem'")),
    ("efficientnet_b0", {"gate_placement": "residual"}, ("gate_placement", "'stage', 'block'", "'residual'")),
    ("efficientnet_b0", {"stages": ()}, ("stages", "0")),
    ("efficientnet_b0", {"stages": (Stage(1, 8, 0, 3, 1),)}, ("stages[0].blocks", "0")),
    ("efficientnet_b0", {"features": 0}, ("features", "0")),
    ("efficientnet_b0", {"drop_path": 1.0}, ("drop_path", "[0, 1)", "1.0")),
    ("efficientnet_b0", {"gate": Gate()}, ("gate=Gate", "functools.partial")),
    ("efficientnet_b0", {"activation": "gelu"}, ("activation", "'silu', 'relu6'", "'gelu'")),
    ("efficientnet_lite0", {"padding": "valid"}, ("padding", "'symmetric', 'same'", "'valid'")),
    ("vit_tiny", {"gelu": "fast"}, ("gelu", "'exact', 'tanh'", "'fast'")),
    ("efficientnet_b0", {"width": 8}, ("'efficientnet_b0'", "'width'", "stem_features")),
    ("multistream", {"streams": ()}, ("streams", "rgb, mask, depth", "()")),
    ("multistream", {"streams": ("rgb", "rgb")}, ("streams", "('rgb', 'rgb')")),
    ("multistream", {"streams": ("rgb", "loc")}, ("streams", "('rgb', 'loc')")),
    ("multistream", {"streams": {"ct": 0}}, ("streams['ct']", "0")),
    ("multistream", {"backbone": "resnet81"}, ("backbone", "'resnet81'", "'resnet18'")),
    ("multistream", {"backbone": "multistream"}, ("backbone", "'multistream'")),
    ("multistream", {"hidden": -1}, ("hidden", "-1")),
    ("multistream", {"dropout": 1.0}, ("dropout", "[0, 1)", "1.0")),
    ("multistream", {"num_classes": -1}, ("num_classes", "-1")),
    ("multistream", {"gate": Gate()}, ("gate=Gate", "functools.partial")),
    ("multistream", {"backbone_options": {"widht": 8}}, ("'resnet18'", "'widht'", "'width'")),
    ("multistream", {"backbone_options": {"width": 0}}, ("width", "0")),
    ("multistream", {"backbone_options": {"gate": None}}, ("backbone_options", "gate")),
    ("multistream", {"bakcbone": "resnet18"}, ("'multistream'", "'bakcbone'", "'backbone'")),
]


@pytest.mark.parametrize(("model", "kwargs", "words"), CASES)
def test_impossible_arguments(model, kwargs, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        create_model(model, **{"num_classes": 2, **kwargs})
    assert [word for word in words if word not in str(error.value)] == []


@pytest.mark.parametrize("value", ["sigmoid", True, 3])
def test_factories_are_callable(value):
    """Without the shape checks, which refuse these types before."""
    with pytest.raises(ValueError, match=rf"(?s)gate.*{value!r}"):
        check_factory("gate", value)


def test_partials_of_gates_are_factories():
    create_model("resnet18", num_classes=2, gate=functools.partial(Gate, kind="relu"))
