"""Training steps in PyTorch: a plain one, and the reference's two full passes (Roffo et al. 2024)."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from experiments.bench.models_jax import ADAMW, GATE_LEARNING_RATE, SGD
from experiments.bench.peers_torch import load_variables, make_model
from experiments.bench.settings import Settings

Step = Callable[[], torch.Tensor]


def device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Peer:
    """A PyTorch side of a comparison: model, optimizers and one batch on the device, channels last.

    Args:
      name: unique among the sides.
      settings: sizes and precision; bfloat16 is autocast.
      model: name of the model.
      variables: Flax variables that it starts from.
      batch: as from `experiments.bench.models_jax.make_batch`.
      two_passes: the reference's two passes, on the gated model, instead of a plain step.
      compiled: put model and loss through `torch.compile`; compiling happens in `prepare`.
    """

    def __init__(
        self,
        name: str,
        settings: Settings,
        model: str,
        variables: Any,
        batch: dict[str, np.ndarray],
        *,
        two_passes: bool,
        compiled: bool,
    ) -> None:
        allow_fast_kernels()
        self.name, self.compiled = name, compiled
        self._start_bytes = _reset_peak()
        twin = make_model(settings, model, gated=two_passes)
        load_variables(twin, variables)
        twin = twin.to(device(), memory_format=torch.channels_last).train()
        image = torch.from_numpy(batch["image"]).to(device()).permute(0, 3, 1, 2)
        label = torch.from_numpy(batch["label"]).long().to(device())
        objective = make_objective(twin, settings.precision)
        if compiled:
            torch._dynamo.reset()
            objective = torch.compile(objective, mode=settings.compile_mode)
        weights, gates = make_optimizers(twin, model)
        self.step: Step = lambda: (two_pass_step if two_passes else plain_step)(
            lambda: objective(image, label), weights, gates
        )
        self.losses: list[float] = []
        self._first_seconds = 0.0

    def prepare(self) -> None:
        """The first step, which compiles."""
        start = time.perf_counter()
        self.run(1)
        self._first_seconds = time.perf_counter() - start

    def run(self, steps: int) -> None:
        """Takes `steps` steps and waits for the device."""
        for _ in range(steps):
            loss = self.step()
            if len(self.losses) < 2:
                self.losses.append(loss.item())
        if device().type == "cuda":
            torch.cuda.synchronize()

    def row(self) -> dict[str, Any]:
        """Compile time, on a GPU the peak memory, and the first loss, JSON-able."""
        peak = torch.cuda.max_memory_allocated() - self._start_bytes if device().type == "cuda" else None
        seconds = self._first_seconds if self.compiled else None
        return {"compile_seconds": seconds, "memory_bytes": peak, "first_loss": self.losses[0]}


def make_objective(model: nn.Module, precision: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Mean cross-entropy of the model, under autocast where the precision asks for it."""
    narrow = precision == "bfloat16"

    def objective(image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device().type, torch.bfloat16, enabled=narrow):
            return F.cross_entropy(model(image).float(), label)

    return objective


def make_optimizers(model: nn.Module, name: str) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer | None]:
    """The optimizer of the weights and, for a gated model, the Adam of the gates; settings as in `models_jax`."""
    gates = [p for n, p in model.named_parameters() if n.endswith("logits")]
    weights = [p for n, p in model.named_parameters() if not n.endswith("logits")]
    fused = True if device().type == "cuda" else None
    adam = torch.optim.Adam(gates, GATE_LEARNING_RATE, fused=fused) if gates else None
    if name.startswith("resnet"):
        rate, others = SGD["learning_rate"], {k: v for k, v in SGD.items() if k != "learning_rate"}
        return torch.optim.SGD(weights, rate, fused=fused, **others), adam
    return torch.optim.AdamW(weights, ADAMW["learning_rate"], weight_decay=ADAMW["weight_decay"], fused=fused), adam


def plain_step(objective: Step, weights: torch.optim.Optimizer, gates: torch.optim.Optimizer | None) -> torch.Tensor:
    """Forward, backward, update; gives the loss."""
    del gates
    weights.zero_grad()
    loss = objective()
    loss.backward()
    weights.step()
    return loss.detach()


def two_pass_step(objective: Step, weights: torch.optim.Optimizer, gates: torch.optim.Optimizer | None) -> torch.Tensor:
    """The gate pass, backward through everything and a step of the gates, then the main pass at the new gates.

    As in the released code, gradients are cleared once, so that the main pass adds to those of the gate pass. Its
    clipping and its replacement of NaN, which cost time, are left out: the peer is not slowed by them.
    """
    assert gates is not None
    weights.zero_grad()
    gates.zero_grad()
    objective().backward()
    gates.step()
    loss = objective()
    loss.backward()
    weights.step()
    return loss.detach()


def allow_fast_kernels() -> None:
    """On a GPU, TF32 for float32, as JAX by default, and the fastest convolution by trial."""
    if device().type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True


def _reset_peak() -> int:
    if device().type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()
