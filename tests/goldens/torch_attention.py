"""VGG and pre-activation ResNet with attention over their maps in PyTorch: the twins of `record.py`."""

import torch
from torch import nn
from torch.nn.functional import max_pool2d, relu


class Level(nn.Module):
    """Additive scores, with tanh or without; sigmoid; the sum over space."""

    def __init__(self, channels, query, tanh):
        super().__init__()
        self.u, self.b, self.tanh = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(())), tanh
        if channels != query:
            self.norm, self.project = nn.BatchNorm1d(query), nn.Linear(query, channels)

    def forward(self, local, g):
        if hasattr(self, "project"):
            g = self.project(relu(self.norm(g)))
        both = local + g[:, :, None, None]
        both = both.tanh() if self.tanh else both
        scores = (both * self.u[:, None, None]).sum(1) + self.b
        return (local * scores.sigmoid()[:, None]).sum((2, 3))


class Attentive(nn.Module):
    def add_heads(self, sizes, query, classes, tanh=False):
        """`sizes`: channels by level with attention."""
        self.levels = list(sizes)
        for level, size in sizes.items():
            setattr(self, f"level{level}", Level(size, query, tanh))
            setattr(self, f"head_norm{level}", nn.BatchNorm1d(size))
        if not sizes:
            self.head_norm = nn.BatchNorm1d(query)
        return nn.Linear(sum(sizes.values()) or query, classes)

    def read(self, taps, g):
        if not self.levels:
            return relu(self.head_norm(g))
        contexts = [getattr(self, f"level{n}")(taps[n], g) for n in self.levels]
        return torch.cat(
            [relu(getattr(self, f"head_norm{n}")(c)) for n, c in zip(self.levels, contexts, strict=True)], 1
        )


class Unit(nn.Module):
    def __init__(self, before, after):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after, eps=1e-3)

    def forward(self, x):
        return relu(self.bn(self.conv(x)))


class VGG(Attentive):
    """`stages`: channels, convolutions, and whether a pooling follows; taps are the first three stages."""

    def __init__(self, stages, levels, classes):
        super().__init__()
        before, self.stages = 3, stages
        for s, (channels, convolutions, _) in enumerate(stages, 1):
            for i in range(convolutions):
                setattr(self, f"stage{s}_{i}", Unit(before, channels))
                before = channels
        self.fc = nn.Linear(before, before)
        self.head = self.add_heads({n: stages[n - 1][0] for n in levels}, before, classes)

    def forward(self, x):
        taps = {}
        for s, (_, convolutions, pool) in enumerate(self.stages, 1):
            for i in range(convolutions):
                x = getattr(self, f"stage{s}_{i}")(x)
            taps[s] = x
            x = max_pool2d(x, 2, ceil_mode=True) if pool else x
        return self.head(self.read(taps, self.fc(x.mean((2, 3)))))

    def places(self):
        ends = [f"stage{s}_{n - 1}" for s, (_, n, _) in enumerate(self.stages, 1)]
        return {f"{end}.gate": getattr(self, end).bn for end in ends}


class Bottleneck(nn.Module):
    def __init__(self, before, inner, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(before), nn.Conv2d(before, inner, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(inner), nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn3, self.conv3 = nn.BatchNorm2d(inner), nn.Conv2d(inner, 4 * inner, 1, bias=False)
        if stride != 1 or before != 4 * inner:
            self.downsample = nn.Sequential(nn.Conv2d(before, 4 * inner, 1, stride, bias=False))

    def forward(self, x):
        active = relu(self.bn1(x))
        y = self.conv3(relu(self.bn3(self.conv2(relu(self.bn2(self.conv1(active)))))))
        return y + (self.downsample(active) if hasattr(self, "downsample") else x)


class PreActResNet(Attentive):
    """One block a stage, attention of tanh scores over all three."""

    def __init__(self, width, classes):
        super().__init__()
        self.conv1, before = nn.Conv2d(3, width, 3, padding=1, bias=False), width
        for s in (1, 2, 3):
            inner = width * 2 ** (s - 1)
            setattr(self, f"layer{s}", nn.Sequential(Bottleneck(before, inner, 1 + (s > 1))))
            before = 4 * inner
        self.bn, self.g_conv = nn.BatchNorm2d(before), nn.Conv2d(before, before, 3, padding=1)
        self.g_bn, self.g_fc = nn.BatchNorm2d(before, eps=1e-3), nn.Linear(before, before)
        self.fc = self.add_heads({s: 4 * width * 2 ** (s - 1) for s in (1, 2, 3)}, before, classes, tanh=True)

    def forward(self, x):
        taps, x = {}, self.conv1(x)
        for s in (1, 2, 3):
            x = taps[s] = getattr(self, f"layer{s}")(x)
        x = max_pool2d(relu(self.bn(x)), 2, ceil_mode=True)
        g = self.g_fc(relu(self.g_bn(self.g_conv(x))).amax((2, 3)))
        return self.fc(self.read(taps, g))

    def places(self):
        return {f"gate{s}": getattr(self, f"layer{s}") for s in (1, 2, 3)}
