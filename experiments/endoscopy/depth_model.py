"""A Hugging Face depth-estimation model: loading it, and maps of a batch of frames."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from experiments.errors import UserError
from fsg_jax.data.extras import import_extra
from fsg_jax.endoscopy.frames.depth_maps import DepthInfo

# By `model_type` of the configuration. MiDaS and its heirs give inverse depth; the others metres.
_LARGER_IS = {"dpt": "nearer", **dict.fromkeys(("glpn", "zoedepth", "depth_pro", "chmv2"), "farther")}
_BY_TYPE = {"relative": "nearer", "metric": "farther"}


class DepthModel(NamedTuple):
    """Image processor and network, on their device."""

    processor: Any
    network: Any
    device: str


def load_model(name: str, device: str) -> DepthModel:
    """Loads the model in a folder, without network access, or of a name on the Hugging Face hub.

    The hub is asked only for a name that is no folder, and never with HF_HUB_OFFLINE=1.

    Raises:
      UserError: it cannot be loaded, or it is no depth-estimation model, or the device is not there.
    """
    transformers, torch = import_extra("transformers", "depth"), import_extra("torch", "depth")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device: expected cpu where torch finds no CUDA device, found cuda")
    local = Path(name).is_dir()
    try:
        # Pillow reads and resizes: torchvision is not needed.
        processor = transformers.AutoImageProcessor.from_pretrained(name, backend="pil", local_files_only=local)
        network = transformers.AutoModelForDepthEstimation.from_pretrained(name, local_files_only=local)
    except (OSError, ValueError, KeyError, ImportError) as error:
        place = "folder" if local else "name on the hub (there is no such folder)"
        raise UserError(
            f"--model: expected a depth-estimation model, found the {place} {name}: {_reason(error)}"
        ) from error
    return DepthModel(processor, network.to(device).eval(), device)


def _reason(error: BaseException) -> str:
    """The message of an error and of the first in the chain that led to it."""
    first = error
    while (earlier := first.__cause__) is not None:
        first = earlier
    return str(error) if first is error else f"{error} (because of {type(first).__name__}: {first})"


def describe_model(
    model: DepthModel, name: str, larger_is: Literal["auto", "nearer", "farther"], *, synthetic: bool
) -> DepthInfo:
    """What depth.json says of the maps; ``larger_is`` "auto" takes it from the model's configuration.

    A model read from a folder goes by the folder's own name, without its parents.

    Raises:
      UserError: the configuration does not tell.
    """
    config = model.network.config
    kind = getattr(config, "depth_estimation_type", None)
    known = _BY_TYPE.get(kind) if kind else _LARGER_IS.get(config.model_type)
    chosen: Any = known if larger_is == "auto" else larger_is
    if chosen is None:
        raise UserError(
            "--larger-is: expected nearer (inverse depth) or farther (distance) for a model that does not tell, "
            f"found auto and {name} of type {config.model_type!r}"
        )
    name = Path(name).resolve().name if Path(name).is_dir() else name
    return DepthInfo(name, chosen, synthetic, getattr(config, "_commit_hash", None))


def predict_depth(model: DepthModel, frames: Sequence[Any], size: tuple[int, int]) -> list[np.ndarray]:
    """Maps of ``size`` (width, height), float32, of frames that all have one size."""
    torch = import_extra("torch", "depth")
    with torch.inference_mode():
        inputs = model.processor(images=list(frames), return_tensors="pt").to(model.device)
        outputs = model.network(**inputs)
        sizes: dict[str, Any] = {"target_sizes": [(size[1], size[0])] * len(frames)}
        finish = model.processor.post_process_depth_estimation
        if "source_sizes" in inspect.signature(finish).parameters:  # padded inputs, whose padding is cut off
            sizes["source_sizes"] = [(frame.height, frame.width) for frame in frames]
        return [found["predicted_depth"].float().cpu().numpy() for found in finish(outputs, **sizes)]
