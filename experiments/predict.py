"""Predictions of image files: ``python -m experiments.predict MODEL IMAGES... [--out predictions.csv]``.

Exits with 1 if some images could not be read, which the file then says of each; see docs/export.md.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from experiments import sources, xla_flags
from experiments.errors import NotFiniteError, UserError, run_main
from experiments.image_files import Found, Unreadable, batches, decode, find_images
from experiments.inspect import as_csv
from experiments.run_folder import writing_to
from fsg_jax._checks import check_integer, expect
from fsg_jax._files import write_json, write_text
from fsg_jax.linen.forward import Forward, find_flag
from fsg_jax.pretrained.artifacts import FORMATS, load_artifact
from fsg_jax.pretrained.preprocessing import Preprocessing, from_json

INCOMPLETE = 1
"""Exit code where some images could not be read."""


@dataclass(frozen=True)
class Args:
    """Predicts image files with a trained model."""

    model: tyro.conf.Positional[str]
    """A run, a checkpoint of it, a saved model, a name of pretrained weights, or an exported model."""
    images: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Files, folders (searched to any depth), and patterns such as 'frames/*.png'."""
    out: Path = Path("predictions.csv")
    """A file that ends in .csv or .json; one that is there is replaced."""
    batch_size: int = 32
    """Images computed at once."""
    top: int = 5
    """Classes given of each image, the most probable first."""
    workers: int = 4
    """Threads that read images."""


class Network(NamedTuple):
    """What computes, and what it is given."""

    call: Callable[[np.ndarray], Any]
    """From a batch of inputs to an array, or to several, the images first."""
    preprocessing: Preprocessing
    shape: tuple[int, ...]
    """Height, width and channels of an input."""
    origin: str


def load_network(text: str) -> Network:
    """The network that `Args.model` names.

    Raises:
      UserError: it takes other inputs than one image.
      ValueError, OSError, ImportError: it cannot be used here.
    """
    path = Path(text)
    if is_exported(path):
        call, facts = (artifact := load_artifact(path)).call, artifact.facts
        shapes, origin = [tuple(found["shape"]) for found in facts["inputs"]], str(facts.get("weights", text))
        given = facts.get("preprocessing")
        preprocessing = None if given is None else from_json(given, f"{text}: preprocessing")
    else:
        model, variables, inputs, _, preprocessing, origin = sources.load(text)
        forward = Forward(model, find_flag(model, "auto"), (), ())
        compiled = jax.jit(lambda variables, images: forward.evaluate(variables, (images,))[0])
        call = partial(compiled, jax.device_put(variables))
        shapes = [leaf.shape for leaf in jax.tree.leaves(inputs)]
    return Network(lambda images: np.asarray(call(images)), *one_image(text, preprocessing, shapes), origin)


def is_exported(path: Path) -> bool:
    """Whether a path names an exported model."""
    named = path.suffix in {Path(name).suffix for name in FORMATS.values()}
    return named or any((path / name).is_file() for name in FORMATS.values())


def one_image(
    text: str, preprocessing: Preprocessing | None, shapes: Sequence[tuple[int, ...]]
) -> tuple[Preprocessing, tuple[int, ...]]:
    """The preprocessing of the network `text`, and height, width and channels of the one image that it takes.

    Raises:
      UserError: it takes other inputs than one image.
      ValueError: its preprocessing gives another one.
    """
    if preprocessing is None or len(shapes) != 1 or len(shapes[0]) != 4:
        raise UserError(f"{text}: expected a model of one image with its preprocessing, found inputs {shapes}")
    gives = (*preprocessing.size, len(preprocessing.mean))
    expect(gives == shapes[0][1:], text, f"preprocessing that gives its input, {shapes[0][1:]}", gives)
    return preprocessing, shapes[0][1:]


def predict(args: Args, network: Network, found: Found) -> list[dict[str, Any]]:
    """A row an image, in their order: ``path`` and ``classes`` with ``probabilities``, a ``value``, or an ``error``.

    Raises:
      NotFiniteError: a prediction is NaN or Inf.
    """
    rows: list[dict[str, Any]] = []
    for name, image, outputs in compute("predicting", args, network, found):
        what = {"error": image.reason} if isinstance(image, Unreadable) else prediction(name, outputs, args.top)
        rows.append({"path": name} | what)
    return rows


def compute(what: str, args: Any, network: Network, found: Found) -> Iterator[tuple[str, np.ndarray | Unreadable, Any]]:
    """Path, input and outputs of each image, in their order; a bar on stderr tells how many are done.

    Every batch has one shape; the rows that pad the last one are dropped, and those of unreadable images mean nothing.

    Args:
      what: is done, for the bar.
      args: with ``batch_size`` and ``workers``, see `Args`.
      network: computes.
      found: the images.
    """
    paths, size = found.images, min(args.batch_size, len(found.images))
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=len(paths))
        left = iter(paths)
        for images in batches(paths, partial(_read, network), size, args.workers):
            batch = np.zeros((size, *network.shape), np.float32)
            for place, image in enumerate(images):
                if not isinstance(image, Unreadable):
                    batch[place] = image
            outputs = network.call(batch)
            for place, image in enumerate(images):
                yield _text(next(left)), image, jax.tree.map(lambda rows, place=place: rows[place], outputs)
            progress.advance(task, len(images))


def _read(network: Network, path: Path) -> np.ndarray:
    return network.preprocessing(decode(path, network.shape[-1]))


def prediction(name: str, outputs: np.ndarray, top: int) -> dict[str, Any]:
    """The `top` ``classes`` of an image with their ``probabilities``, or the ``value`` of a single output.

    Raises:
      NotFiniteError: an output is NaN or Inf.
    """
    outputs = outputs.astype(np.float64)
    if not np.isfinite(outputs).all():
        raise NotFiniteError(f"{name}: expected finite outputs, found NaN or Inf")
    if outputs.size == 1:
        return {"value": outputs.item()}
    exponents = np.exp(outputs - outputs.max())
    probabilities = exponents / exponents.sum()
    order = np.argsort(-probabilities, kind="stable")[:top]
    return {"classes": order.tolist(), "probabilities": probabilities[order].tolist()}


def _text(path: Path) -> str:
    """The path, with what is no Unicode in its name spelled out."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def write(out: Path, rows: Sequence[dict[str, Any]], network: Network) -> None:
    """Writes the predictions, whole or not at all."""
    bad = sum("error" in row for row in rows)
    with writing_to(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix == ".json":
            about = {"weights": network.origin, "preprocessing": network.preprocessing._asdict()}
            write_json(out, about | {"images": len(rows), "unreadable": bad, "predictions": list(rows)})
        else:
            write_text(out, as_csv(_flat(rows)))


def _flat(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with the columns of a table; those that an image has not are empty."""
    most = max(len(row.get("classes", ())) for row in rows)
    names = [f"{name}_{place + 1}" for place in range(most) for name in ("class", "probability")]
    names = ["path", *(["value"] if any("value" in row for row in rows) else []), *names, "error"]
    flat = []
    for row in rows:
        cells = dict.fromkeys(names) | {k: v for k, v in row.items() if k in names}
        for place, pair in enumerate(zip(row.get("classes", ()), row.get("probabilities", ()), strict=True)):
            cells[f"class_{place + 1}"], cells[f"probability_{place + 1}"] = pair
        flat.append(cells)
    return flat


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    args = tyro.cli(Args, args=argv, prog="python -m experiments.predict")
    for name in ("batch_size", "top", "workers"):
        check_integer(f"--{name.replace('_', '-')}", getattr(args, name), 1)
    if args.out.suffix not in (".csv", ".json"):
        raise UserError(f"--out: expected a file that ends in .csv or .json, found {args.out}")
    xla_flags.speed_up_convolutions()
    found = find_images(args.images)
    network = load_network(args.model)
    rows = predict(args, network, found)
    write(args.out, rows, network)
    print(f"{len(rows)} images, {network.origin}: {args.out}")
    finish(rows, found)


def finish(rows: Sequence[Mapping[str, Any]], found: Found) -> None:
    """Says on stderr what was passed over, and exits with 1 if some images, rows with an ``error``, were unreadable."""
    if found.others:
        print(f"{found.others} other files in the folders", file=sys.stderr)
    if bad := [row for row in rows if "error" in row]:
        for row in bad:
            print(f"unreadable: {row['path']}: {row['error']}", file=sys.stderr)
        print(f"error: {len(bad)} of {len(rows)} images could not be read", file=sys.stderr)
        sys.exit(INCOMPLETE)


if __name__ == "__main__":
    run_main(main)
