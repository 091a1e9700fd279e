"""Where a network looks: ``python -m experiments.attention MODEL IMAGES... [--out attention]``.

Overlays of its attention maps as a picture and as a page, and the numbers of the maps. Exits with 1 if some images
could not be read; see docs/attention_maps.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments import sources, xla_flags
from experiments.errors import NotFiniteError, UserError, run_main
from experiments.image_files import Found, Unreadable, find_images
from experiments.predict import Network, compute, finish, is_exported, one_image, prediction
from experiments.run_folder import writing_to
from fsg_jax._checks import check_choice, check_integer, expect
from fsg_jax._files import write_json
from fsg_jax.explain.maps import attention_maps, layer_order, map_entropy, resize_maps
from fsg_jax.typing import GATES

MOST_LEVELS = 4
"""Levels that are shown without being asked for."""


@dataclass(frozen=True)
class Args:
    """Attention maps of image files, laid over them: of a VGG, a pre-activation ResNet or a ViT."""

    model: tyro.conf.Positional[str]
    """A run, a checkpoint of it, a saved model, or a name of pretrained weights."""
    images: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Files, folders (searched to any depth), and patterns such as 'frames/*.png'."""
    out: Path = Path("attention")
    """Folder for attention.png, attention.html and attention.json; files that are there are replaced."""
    levels: tuple[str, ...] = ()
    """Maps by name, such as level2 or blocks_11; none: all of up to four, else the first, the middle and the last
    two."""
    show: int = 24
    """Images in the picture and on the page, the first that can be read; the numbers are of all."""
    batch_size: int = 32
    """Images computed at once."""
    workers: int = 4
    """Threads that read images."""


class Attentive(NamedTuple):
    """A network with maps over space."""

    network: Network
    """Gives the outputs, and by level the maps and their entropies."""
    levels: dict[str, tuple[int, int]]
    """Rows and columns of the maps that are asked for."""
    gated: bool


class Shown(NamedTuple):
    """An image with its maps."""

    row: dict[str, Any]
    image: np.ndarray
    """What the network saw, (height, width, 3) in [0, 1]."""
    maps: dict[str, np.ndarray]
    """By level, of the size of the image."""


def load(args: Args) -> Attentive:
    """The network that `Args.model` names.

    Raises:
      UserError: it takes other inputs than one image, or has no maps over space, or not those of `Args.levels`.
      ValueError, OSError, ImportError: it cannot be used here.
    """
    text = args.model
    if is_exported(Path(text)):
        raise UserError(f"{text}: expected a run, a checkpoint or a saved model, found an exported one, without maps")
    model, variables, inputs, _, preprocessing, origin = sources.load(text)
    image = one_image(text, preprocessing, [leaf.shape for leaf in jax.tree.leaves(inputs)])
    try:
        maps = jax.eval_shape(partial(attention_maps, model), variables, inputs)[1]
    except ValueError as error:
        raise UserError(f"{text}: {error}") from error
    levels = {name: maps[name].shape[1:] for name in choose_levels(sorted(maps, key=layer_order), args.levels)}
    compiled, variables = jax.jit(partial(_compute, model, tuple(levels))), jax.device_put(variables)
    network = Network(lambda images: jax.device_get(compiled(variables, images)), *image, origin)
    return Attentive(network, levels, GATES in variables)


def _compute(model: nn.Module, levels: Sequence[str], variables: Any, images: jax.Array) -> Any:
    outputs, maps = attention_maps(model, variables, images)
    return outputs, {name: (maps[name], map_entropy(maps[name])) for name in levels}


def choose_levels(names: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    """The levels that are asked for, in the order of the layers; raises ValueError for one that there is not."""
    for name in wanted:
        check_choice("--levels", name, names)
    if not wanted and len(names) > MOST_LEVELS:
        wanted = [names[i] for i in (0, len(names) // 2, -2, -1)]
    return tuple(name for name in names if not wanted or name in wanted)


def look(args: Args, found: Attentive, images: Found) -> tuple[list[dict[str, Any]], list[Shown]]:
    """A row an image, in their order, and those that are shown.

    A row has the ``path``, what `experiments.predict` gives, and by level ``entropy``, of a uniform map's; ``min``,
    ``max``, ``sum``, and ``at``, row and column of the maximum; or an ``error``.

    Raises:
      NotFiniteError: an output or a map is NaN or Inf.
    """
    rows: list[dict[str, Any]] = []
    shown: list[Shown] = []
    for name, image, computed in compute("looking", args, found.network, images):
        row: dict[str, Any] = {"path": name}
        rows.append(row)
        if isinstance(image, Unreadable):
            row["error"] = image.reason
            continue
        outputs, maps = computed
        row |= prediction(name, outputs, top=1) | {"levels": {k: _numbers(name, k, *maps[k]) for k in found.levels}}
        if len(shown) < args.show:
            shown.append(Shown(row, _visible(found.network, image), {k: maps[k][0] for k in found.levels}))
    if not shown:
        return rows, shown
    size, stacked = shown[0].image.shape[:2], {k: np.stack([one.maps[k] for one in shown]) for k in found.levels}
    large = {k: np.asarray(resize_maps(jnp.asarray(maps), (size[0], size[1]))) for k, maps in stacked.items()}
    return rows, [one._replace(maps={k: large[k][i] for k in large}) for i, one in enumerate(shown)]


def _numbers(name: str, level: str, values: np.ndarray, entropy: np.ndarray) -> dict[str, Any]:
    if not np.isfinite(values).all():
        raise NotFiniteError(f"{name}: {level}: expected a finite map, found NaN or Inf")
    at = [int(i) for i in np.unravel_index(values.argmax(), values.shape)]
    known = float(entropy) if np.isfinite(entropy) else None  # a sigmoid can be 0 everywhere
    ends = {"min": float(values.min()), "max": float(values.max())}
    return {"entropy": known, **ends, "sum": float(values.sum(dtype=np.float64)), "at": at}


def _visible(network: Network, image: np.ndarray) -> np.ndarray:
    """The crop that a network was given, before it was normalised."""
    mean, std = (np.reshape(v, (1, 1, -1)) for v in (network.preprocessing.mean, network.preprocessing.std))
    return np.broadcast_to(np.clip(image * std + mean, 0, 1), (*image.shape[:2], 3))


def write(args: Args, found: Attentive, rows: Sequence[dict[str, Any]], shown: Sequence[Shown]) -> None:
    """Writes the files, each whole or not at all; the picture only if an image can be read."""
    from experiments.attention_pictures import draw, write_page

    network, unreadable = found.network, sum("error" in row for row in rows)
    about = {"weights": network.origin, "preprocessing": network.preprocessing._asdict(), "gates": found.gated}
    about |= {"levels": {k: {"rows": s[0], "columns": s[1]} for k, s in found.levels.items()}}
    about |= {"images": len(rows), "unreadable": unreadable}
    with writing_to(args.out):
        args.out.mkdir(parents=True, exist_ok=True)
        write_json(args.out / "attention.json", about | {"maps": list(rows)})
        if shown:
            draw(args.out / "attention.png", found.levels, shown)
        write_page(args.out / "attention.html", about, rows, shown)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    args = tyro.cli(Args, args=argv, prog="python -m experiments.attention")
    for name, most in (("batch_size", None), ("workers", None), ("show", 200)):
        check_integer(f"--{name.replace('_', '-')}", getattr(args, name), 1, most)
    expect(not args.out.exists() or args.out.is_dir(), "--out", "a folder", f"the file {args.out}")
    xla_flags.speed_up_convolutions()
    images = find_images(args.images)
    found = load(args)
    rows, shown = look(args, found, images)
    write(args, found, rows, shown)
    print(f"{len(rows)} images, {', '.join(found.levels)} of {found.network.origin}: {args.out / 'attention.html'}")
    finish(rows, images)


if __name__ == "__main__":
    run_main(main)
