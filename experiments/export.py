"""A trained model as a file that other programs run: ``python -m experiments.export MODEL --out FOLDER``.

See docs/export.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import tyro

import fsg_jax as fsg
from experiments import sources
from experiments.errors import UserError, run_main
from experiments.run_folder import writing_to
from fsg_jax._checks import expect
from fsg_jax.data.extras import import_extra
from fsg_jax.pretrained.artifacts import export_onnx, export_stablehlo


@dataclass(frozen=True)
class Args:
    """Exports a model with its weights, in evaluation mode, for any batch size."""

    model: tyro.conf.Positional[str]
    """A run, a checkpoint of it, a saved model, or a name of pretrained weights."""
    out: Path
    """Folder for the files."""
    formats: tuple[Literal["stablehlo", "onnx"], ...] = ("stablehlo",)
    """StableHLO for JAX; ONNX for onnxruntime and others."""
    platforms: tuple[Literal["cpu", "cuda", "rocm", "tpu"], ...] = ("cpu", "cuda")
    """Of StableHLO; they need not be there."""
    image_size: int | None = None
    """Side of the images in pixels, of a saved model or pretrained weights; None: what they were made for."""
    fold: bool = False
    """Multiply the gates into the weights first."""


def export(args: Args) -> list[dict[str, Any]]:
    """Writes the files; what those beside them say.

    Raises:
      UserError, ValueError, OSError, ImportError: the model cannot be used, or cannot be exported.
    """
    if not args.formats or len(set(args.formats)) < len(args.formats):
        raise UserError(f"--formats: expected stablehlo, onnx or both, found {' '.join(args.formats) or 'none'}")
    for module in ("jax2onnx", "onnxruntime") if "onnx" in args.formats else ():
        import_extra(module, "export")  # before the other format is written
    source = sources.load(args.model, args.image_size)
    expect(source.sized, "--image-size", "the side of the images, for the model does not say it", None)
    model, variables = source.model, source.variables
    if args.fold:
        model, variables = fsg.fold_gates(model, variables)
    preprocessing = None if source.preprocessing is None else source.preprocessing._asdict()
    facts = {"weights": source.origin, "folded": args.fold, "preprocessing": preprocessing}
    written = []
    with writing_to(args.out):
        for name in args.formats:
            write = export_onnx if name == "onnx" else partial(export_stablehlo, platforms=args.platforms)
            written.append(write(args.out, model, variables, source.inputs, facts=facts))
    return written


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    args = tyro.cli(Args, args=argv, prog="python -m experiments.export")
    for facts in export(args):
        compared = "not compared here"
        if facts["difference"] is not None:
            compared = f"largest difference from the model {facts['difference']:.1e}"
        print(f"{args.out / facts['file']}: for {', '.join(facts['platforms'])}; {compared}")


if __name__ == "__main__":
    run_main(main)
