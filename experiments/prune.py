"""A trained network made smaller: ``python -m experiments.prune MODEL --flops 50% --out FOLDER``.

The folder is one of `fsg_jax.save_pretrained`: `predict`, `export` and `inspect` take it, and training goes on with it
by ``python -m experiments.train CONFIG --model.pretrained FOLDER --model.pretrained-part all``. See docs/pruning.md.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import fsg_jax as fsg
from experiments import sources
from experiments.config import Experiment
from experiments.errors import UserError, run_main
from experiments.run_folder import writing_to
from experiments.trained import read_experiment, run_around
from fsg_jax._checks import expect


@dataclass(frozen=True)
class Args:
    """Removes channels inside the blocks of a network until it meets a budget."""

    model: tyro.conf.Positional[str]
    """A run, a checkpoint of it, a saved model, or a name of pretrained weights."""
    out: Path
    """Folder for the smaller model, its weights and what was removed (README.md); it must not be there yet."""
    flops: str | None = None
    """Bound of the floating-point operations of one image, such as 50% or 2e8."""
    params: str | None = None
    """Bound of the parameters."""
    score: Literal["gate", "magnitude", "random"] = "gate"
    """Which channels go first; see `fsg_jax.prune`."""
    divisor: int = 8
    min_keep: int = 8
    seed: int = 0
    """Of random scores."""
    calibrate: int = 0
    """Batches of 128 training images of the run, from which BatchNorm statistics are measured anew; 0: they stay."""
    fold: bool = False
    """Multiply the gates into the weights afterwards."""


def prune(args: Args) -> fsg.Pruned:
    """Writes the folder; the smaller model.

    Raises:
      UserError, ValueError, OSError: the model cannot be used or made small enough, or the folder is there.
    """
    source = sources.load(args.model)
    expect(source.sized, "MODEL", "one that says the size of its images", source.origin)
    draw = np.random.default_rng(0).normal
    inputs = jax.tree.map(lambda x: jnp.asarray(draw(size=(4, *x.shape[1:])), x.dtype), source.inputs)
    budget = {name: bound for name, bound in (("flops", args.flops), ("params", args.params)) if bound is not None}
    pruned = fsg.prune(
        source.model,
        source.variables,
        inputs,
        budget=budget,
        divisor=args.divisor,
        min_keep=args.min_keep,
        score=args.score,
        calibrate=islice(training_images(args.model), args.calibrate) if args.calibrate else None,
        seed=args.seed,
    )
    model, variables = fsg.fold_gates(*pruned[:2]) if args.fold else pruned[:2]
    table = pruned.table
    card: dict[str, Any] = {"pruned from": source.origin, "score": args.score, "budget": budget}
    card |= {"parameters": f"{table.parameters[0]:,} -> {table.parameters[1]:,}"}
    card |= {"FLOPs": f"{table.flops[0]:,} -> {table.flops[1]:,}", "batches of calibration": args.calibrate}
    with writing_to(args.out):
        fsg.save_pretrained(args.out, model, variables, card=card, preprocessing=source.preprocessing)
    return pruned


def training_images(path: str) -> Iterator[Any]:
    """Batches of 128 training images of a run, as its network is given them in evaluation.

    Raises:
      UserError: `path` is no run on images.
    """
    from experiments.classification import evaluation_transform, load_splits  # reads the data sets

    found = run_around(Path(path))
    experiment = None if found is None else read_experiment(found[0].config)
    if not isinstance(experiment, Experiment):
        raise UserError(f"--calibrate: expected a run on images, whose training images are known, found {path}")
    images, prepare = load_splits(experiment.data).train.images, evaluation_transform(experiment)
    for start in range(0, len(images) - 127, 128):
        yield prepare(jax.random.key(0), {"image": jnp.asarray(images[start : start + 128])})["image"]


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    args = tyro.cli(Args, args=argv, prog="python -m experiments.prune")
    print(prune(args).table)
    print(f"in {args.out}")


if __name__ == "__main__":
    run_main(main)
