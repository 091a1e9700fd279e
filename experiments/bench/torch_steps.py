"""PyTorch's sides of a comparison: a plain step, and the reference's two full passes (Roffo et al. 2024)."""

import time
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from experiments.bench.jax_steps import ADAMW, GATE_LEARNING_RATE, SGD
from experiments.bench.settings import Settings
from experiments.bench.timing import Side
from experiments.bench.torch_models import load_variables, make_model


def torch_side(
    settings: Settings, model: str, variables: Any, batch: dict[str, np.ndarray], *, two_passes: bool, compiled: bool
) -> Side:
    """Model, optimizers and one batch on the device, channels last, after two steps.

    On a GPU float32 is TF32, as JAX's is by default, convolutions are the fastest by trial, and `Side.about` gives the
    most memory that was allocated.

    Args:
      settings: sizes and precision; bfloat16 is autocast.
      model: name of the model.
      variables: Flax variables that it starts from.
      batch: as from `experiments.bench.jax_steps.make_batch`.
      two_passes: the reference's two passes, on the gated model, instead of a plain step.
      compiled: put model and loss through `torch.compile`.
    """
    gpu = torch.cuda.is_available()
    device, start_bytes = torch.device("cuda" if gpu else "cpu"), 0
    if gpu:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
        torch.cuda.reset_peak_memory_stats()
        start_bytes = torch.cuda.memory_allocated()
    twin = make_model(settings, model, gated=two_passes)
    load_variables(twin, variables)
    twin = twin.to(device, memory_format=torch.channels_last).train()
    optimizers = make_optimizers(twin, model)
    image = torch.from_numpy(batch["image"]).to(device).permute(0, 3, 1, 2)
    label = torch.from_numpy(batch["label"]).long().to(device)

    def objective(image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
            return F.cross_entropy(twin(image).float(), label)

    if compiled:
        torch._dynamo.reset()
        objective = torch.compile(objective, mode=settings.compile_mode)

    def step() -> torch.Tensor:
        """One pass an optimizer: with two of them the gates move, then the weights at the new gates.

        As in the released code, gradients are cleared once, so that the second pass adds to those of the first. Its
        clipping and its replacement of NaN, which cost time, are left out: the peer is not slowed by them.
        """
        for optimizer in optimizers:
            optimizer.zero_grad()
        for optimizer in optimizers:
            loss = objective(image, label)
            loss.backward()
            optimizer.step()
        return loss.detach()

    made, start = Side(step, (lambda _: torch.cuda.synchronize()) if gpu else (lambda _: None)), time.perf_counter()
    first_loss = made.run(1).item()
    made.about = {"compile_seconds": time.perf_counter() - start if compiled else None}
    made.run(1)  # the optimizers have their moments only after the first step
    memory = torch.cuda.max_memory_allocated() - start_bytes if gpu else None
    made.about |= {"memory_bytes": memory, "first_loss": first_loss}
    return made


def make_optimizers(model: nn.Module, name: str) -> list[torch.optim.Optimizer]:
    """The Adam of the gates if there are any, then the optimizer of the weights; settings as in `jax_steps`."""
    gates = [p for n, p in model.named_parameters() if n.endswith("logits")]
    weights = [p for n, p in model.named_parameters() if not n.endswith("logits")]
    kind, options = (torch.optim.AdamW, ADAMW) if name.startswith("vit") else (torch.optim.SGD, SGD)
    fused = True if torch.cuda.is_available() else None
    adam = [torch.optim.Adam(gates, GATE_LEARNING_RATE, fused=fused)] if gates else []
    return [*adam, kind(weights, **options, fused=fused)]
