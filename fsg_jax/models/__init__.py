"""The models of the library; `create_model` makes each by its name."""

from fsg_jax.models.backbones import BACKBONES
from fsg_jax.models.efficientnet import EfficientNet, MBConv, Stage
from fsg_jax.models.multistream import MultiStream
from fsg_jax.models.preact_resnet import PreActResNet
from fsg_jax.models.registry import MODELS, create_model, list_models
from fsg_jax.models.resnet import BasicBlock, Bottleneck, ResidualBlock, ResNet
from fsg_jax.models.spatial_attention import SpatialAttention
from fsg_jax.models.vgg import VGG
from fsg_jax.models.vig import BidirectionalGLA
from fsg_jax.models.vit import SelfAttention, ViT

__all__ = [
    "BACKBONES",
    "MODELS",
    "VGG",
    "BasicBlock",
    "BidirectionalGLA",
    "Bottleneck",
    "EfficientNet",
    "MBConv",
    "MultiStream",
    "PreActResNet",
    "ResNet",
    "ResidualBlock",
    "SelfAttention",
    "SpatialAttention",
    "Stage",
    "ViT",
    "create_model",
    "list_models",
]
