"""Records the goldens of reduced models from modules of timm (ViG and networks with attention: own) in float64.

``python tests/goldens/record.py [NAMES]`` needs the parity extra. Weights, images and labels are by the rule of tests/timm_weights.py, with PyTorch's own names;
gates are multiplications hooked into timm's modules. A golden is the logits in evaluation, and one step in training
mode as the paper has it: the gates take an SGD step of rate 1 first, then the weights, at the new gates, theirs. Of
every leaf's change the norm and a random projection are kept; projections are drawn by the rule as well, in PyTorch's
layout. Averages of the variance are those of the biased variance, which Flax keeps and PyTorch does not.
"""

import json
import sys
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import timm_weights
from reduced import BATCH, CLASSES, REDUCED, VGG_STAGES
from torch_attention import VGG, PreActResNet
from torch_vig import ViG
from torchvision_operators import declare_missing_operators

declare_missing_operators()
import timm.models.efficientnet  # noqa: E402
import timm.models.resnet  # noqa: E402
import timm.models.vision_transformer  # noqa: E402

STAGES = tuple((4 * multiple, convolutions, pool) for multiple, convolutions, pool in VGG_STAGES)
FILE = Path(__file__).parent / "reduced.json"


class ResNet(torch.nn.Module):
    """timm's blocks behind a stem of 8 channels."""

    def __init__(self, block, sizes, stem, classes=CLASSES, channels=3, width=8):
        super().__init__()
        size, stride = (7, 2) if stem == "imagenet" else (3, 1)
        self.conv1 = torch.nn.Conv2d(channels, width, size, stride, size // 2, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(width)
        self.pool = torch.nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else torch.nn.Identity()
        block, before = getattr(timm.models.resnet, block), width
        for index, count in enumerate(sizes):
            after, stride = width * 2**index * block.expansion, 2 if index else 1
            blocks = []
            for i in range(count):
                down = None
                if i == 0 and (stride != 1 or before != after):
                    down = timm.models.resnet.downsample_conv(before, after, 1, stride)
                blocks.append(block(before, width * 2**index, stride if i == 0 else 1, down))
                before = after
            setattr(self, f"layer{index + 1}", torch.nn.Sequential(*blocks))
        self.stages = len(sizes)
        self.fc = torch.nn.Linear(before, classes) if classes else torch.nn.Identity()
        self.features = before

    def forward(self, x):
        x = self.pool(torch.relu(self.bn1(self.conv1(x))))
        for index in range(self.stages):
            x = getattr(self, f"layer{index + 1}")(x)
        return self.fc(x.mean((2, 3)))

    def places(self):
        return {f"gate{i + 1}": getattr(self, f"layer{i + 1}") for i in range(self.stages)}


class MultiStream(torch.nn.Module):
    """Two ResNets of one block and the gated head of the paper."""

    def __init__(self):
        super().__init__()
        self.rgb = ResNet("BasicBlock", (1,), "imagenet", 0)
        self.depth = ResNet("BasicBlock", (1,), "imagenet", 0, channels=1)
        self.embedding, self.hidden = torch.nn.Identity(), torch.nn.ReLU()
        self.fc1, self.head = torch.nn.Linear(16, 6), torch.nn.Linear(6, CLASSES)

    def forward(self, x):
        y = self.embedding(torch.cat([self.rgb(x["rgb"]), self.depth(x["depth"])], 1))
        return self.head(self.hidden(self.fc1(y)))

    def places(self):
        streams = {f"{s}.{name}": m for s in ("rgb", "depth") for name, m in getattr(self, s).places().items()}
        return {**streams, "gate_embedding": self.embedding, "gate_hidden": self.hidden}


def vit(heads, depth):
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=REDUCED["vit_tiny"].size, patch_size=4, embed_dim=24, depth=depth, num_heads=heads, num_classes=CLASSES
    )
    model.places = lambda: {
        f"blocks.{i}.gate{j}": part for i, b in enumerate(model.blocks) for j, part in ((1, b.attn), (2, b.mlp))
    }
    return model


def efficientnet(se="_se0.25", act=torch.nn.SiLU, tf=True):
    rows = timm.models.efficientnet.decode_arch_def([[f"ds_r1_k3_s1_e1_c8{se}"], [f"ir_r2_k5_s2_e3_c16{se}"]])
    options = {"num_features": 16, "stem_size": 8, "act_layer": act, "pad_type": "same" if tf else ""}
    layer = partial(timm.layers.BatchNormAct2d, eps=1e-3 if tf else 1e-5)
    model = timm.models.efficientnet.EfficientNet(rows, num_classes=CLASSES, norm_layer=layer, **options)
    model.places = lambda: {f"gate{i + 1}": stage for i, stage in enumerate(model.blocks)}
    return model


TWINS = {
    "resnet18": lambda: ResNet("BasicBlock", (1, 1), "cifar"),
    "resnet34": lambda: ResNet("BasicBlock", (2, 1), "imagenet"),
    "resnet50": lambda: ResNet("Bottleneck", (2, 1), "imagenet"),
    "efficientnet_b0": lambda: efficientnet(tf=False),
    "tf_efficientnet_b0": efficientnet,
    "efficientnet_lite0": lambda: efficientnet("", torch.nn.ReLU6),
    "vit_tiny": lambda: vit(3, 2),
    "vit_small": lambda: vit(6, 1),
    "vit_base": lambda: vit(12, 1),
    "vig_tiny": lambda: ViG((3, 2), 4, 24, 3, 2, CLASSES, True),
    "vig_small": lambda: ViG((3, 2), 4, 24, 6, 1, CLASSES, False),
    "vig_base": lambda: ViG((3, 2), 4, 48, 12, 1, CLASSES, False),
    "vgg16": lambda: VGG(STAGES, (), CLASSES),
    "vgg_att": lambda: VGG(STAGES, (2, 3), CLASSES),
    "resnet_att": lambda: PreActResNet(4, CLASSES),
    "multistream": MultiStream,
}


def tensor(array):
    return torch.from_numpy(np.array(array, np.float32)).double()


def add_gates(model):
    """Hooks a gate on every place; a leaf of its own, by the name of ours."""
    gates = {}
    for name, module in model.places().items():

        def multiply(_, inputs, output, name=f"{name}.logits"):
            axis = -1 if output.ndim != 4 else 1
            size = output.shape[axis]
            if name not in gates:
                gates[name] = tensor(timm_weights.draw(name, (size,))).requires_grad_()
            return output * torch.sigmoid(gates[name]).reshape(1, -1, *(1,) * (output.ndim - 2 if axis == 1 else 0))

        module.register_forward_hook(multiply)
    return gates


def images_of(name):
    height, width = REDUCED[name].size

    def make(stream, channels):
        x = timm_weights.images(f"{name}/{stream}", BATCH, channels, height, width)
        return tensor(x.transpose(0, 3, 1, 2))

    return {s: make(s, c) for s, c in REDUCED[name].channels.items()} or make("x", 3)


def biased_average(model, x):
    """Buffers after the forward pass in training, with the biased variance."""
    wanted = {}

    def keep(name):
        def hook(module, inputs):
            axes = [i for i in range(inputs[0].ndim) if i != 1]
            wanted[name] = 0.9 * module.running_var + 0.1 * inputs[0].var(axes, unbiased=False)

        return hook

    norms = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d)}
    handles = [m.register_forward_pre_hook(keep(n)) for n, m in norms.items()]
    output = model(x)
    for handle in handles:
        handle.remove()
    means = {f"{n}.running_mean": m.running_mean for n, m in norms.items()}
    return output, means | {f"{n}.running_var": v for n, v in wanted.items()}


def fingerprint(name, change):
    change = change.detach().numpy()
    probe = np.random.default_rng(timm_weights.crc(f"{name}/probe")).normal(0, 1, change.shape)
    return [float(np.linalg.norm(change)), float((probe * change).sum())]


def record(name):
    model = TWINS[name]().double()
    state = model.state_dict()
    for key in state:
        if not key.endswith("num_batches_tracked"):
            state[key] = tensor(timm_weights.draw(key, tuple(state[key].shape)))
    model.load_state_dict(state)
    gates, x, labels = add_gates(model), images_of(name), torch.arange(BATCH)
    entropy = torch.nn.functional.cross_entropy
    with torch.no_grad():
        logits = model.eval()(x)
    assert len(gates) == len(model.places())
    before = {key: value.clone() for key, value in state.items()}
    frozen = {key: value.clone() for key, value in model.state_dict().items()}
    gradients = torch.autograd.grad(entropy(model.train()(x), labels), list(gates.values()))
    moved = dict(zip(gates, (-g for g in gradients), strict=True))
    model.load_state_dict(frozen)  # the gate pass leaves the statistics alone
    with torch.no_grad():
        for gate, change in moved.items():
            gates[gate] += change
    output, averages = biased_average(model, x)
    loss = entropy(output, labels)
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    moved |= dict(zip(parameters, (-g for g in gradients), strict=True))
    moved |= {key: value - before[key] for key, value in averages.items()}
    return {
        "logits": logits.tolist(),
        "loss": loss.item(),
        "changes": {key: fingerprint(key, value) for key, value in sorted(moved.items())},
    }


def rounded(value):
    if isinstance(value, float):
        return float(f"{value:.9g}") if abs(value) > 1e-12 else 0.0
    if isinstance(value, dict):
        return {key: rounded(v) for key, v in value.items()}
    return [rounded(v) for v in value]


def as_text(goldens):
    """JSON with one line for each number or list of a golden."""
    models = []
    for name, golden in goldens.items():
        changes = ",\n".join(f"   {json.dumps(key)}: {json.dumps(value)}" for key, value in golden["changes"].items())
        head = "\n".join(f"  {json.dumps(key)}: {json.dumps(golden[key])}," for key in ("logits", "loss"))
        models.append(f' {json.dumps(name)}: {{\n{head}\n  "changes": {{\n{changes}\n  }}\n }}')
    return "{\n" + ",\n".join(models) + "\n}\n"


if __name__ == "__main__":
    goldens = {name: rounded(record(name)) for name in sys.argv[1:] or TWINS}
    goldens = json.loads(FILE.read_text()) | goldens
    FILE.write_text(as_text(goldens))
    print({name: golden["loss"] for name, golden in goldens.items()}, FILE.stat().st_size)
