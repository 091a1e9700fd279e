"""Where networks that learned from crops look in whole frames: ``python -m experiments.localise RUNS... --frames DIR``.

Maps of the frames of Kvasir-SEG against their masks, which no network has seen: attention, Grad-CAM, the gradient of
the input, and a map that is largest in the centre. What there is to choose of a kind of map (its level or layer, its
blur) and the threshold, beside Otsu's, is chosen on the validation frames; the test frames are scored once.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tqdm import tqdm

from experiments import provenance
from experiments.endoscopy.crops import find_frames, read_frame
from experiments.endoscopy.localise_page import draw, write_page
from experiments.errors import NotFiniteError, UserError, run_main
from experiments.networks import Network, read_networks
from experiments.run_folder import seal, writing_to
from experiments.sources import preprocessing_of
from experiments.trained import DATA
from fsg_jax._checks import check_integer
from fsg_jax._files import write_json
from fsg_jax.data.extras import import_extra
from fsg_jax.endoscopy.sizing.intervals import bootstrap
from fsg_jax.explain import (
    attention_maps,
    binarise,
    class_activation,
    input_gradient,
    jaccard,
    points_inside,
    resize_maps,
)
from fsg_jax.models import VGG

SHARES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
"""Thresholds that are tried beside Otsu's: that share of the pixels of every frame."""
BLURS = (0.0, 4.0, 8.0, 16.0)
"""Of the gradient of the input, standard deviations in pixels."""
CENTRES = (0.15, 0.25, 0.35)
"""Of the map that is largest in the centre, standard deviations over the side of the frame."""
POLYP = 1
"""The class of crops with a polyp."""


@dataclass(frozen=True)
class Args:
    """Scores the maps of classifiers of crops against the masks of whole frames."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Runs of kvasir_crops, or folders of runs such as that of an ablation."""
    frames: Path
    """Kvasir-SEG, with validation and test, each with images and masks, all frames of one size."""
    out: Path
    """Folder for localise.json, localise.md and localise.png; files that are there are replaced."""
    limit: int | None = None
    """Take that many frames of each split, the first ones; None: all."""
    batch_size: int = 10
    """Frames computed at once."""
    resamples: int = 2000
    """Of the bootstrap over frames."""


class Frames(NamedTuple):
    """The frames of a split."""

    names: list[str]
    images: np.ndarray
    """uint8 (frames, height, width, 3)."""
    masks: np.ndarray
    """bool (frames, height, width)."""


MakeMaps: TypeAlias = Callable[[Frames], np.ndarray]


class Chosen(NamedTuple):
    """A kind of map of one network, as it does best on the validation frames."""

    variant: str
    share: float
    """Of the pixels above its own threshold."""
    validation: float
    """Mean Jaccard index with Otsu's threshold, by which the variant is chosen."""
    scores: dict[str, np.ndarray]
    """Of the test frames: ``otsu`` and ``share``, Jaccard indices; ``pointing``."""
    maps: np.ndarray
    """Of the test frames, of their size."""


def read_split(folder: Path, split: str, limit: int | None) -> Frames:
    """The frames of a split.

    Raises:
      UserError: there are none.
      ValueError: a file cannot be read, or frames differ in size.
    """
    pairs = find_frames(folder, split)[:limit]
    read = [read_frame(*pair) for pair in pairs]
    sizes = sorted({mask.shape for _, mask in read})
    if len(sizes) > 1:
        raise UserError(f"{folder / split}: expected frames of one size, found {sizes[:5]}")
    images, masks = zip(*read, strict=True)
    return Frames([image.name for image, _ in pairs], np.stack(images), np.stack(masks))


def kinds_of(network: Network) -> dict[str, dict[str, Callable[..., Any]]]:
    """By kind of map and variant, functions from variables and normalised frames to maps (batch, rows, columns)."""
    model, target = network.model, _for_polyp
    found: dict[str, dict[str, Callable[..., Any]]] = {}
    if getattr(model, "attention", None) is not None:
        levels = [f"level{level}" for level in model.attended]
        found["attention"] = {
            level: lambda v, x, level=level: attention_maps(model, v, x)[1][level] for level in levels
        }
    layers = [f"stage{s + 1}_{model.stages[s][1] - 1}" for s in model.tapped]
    found["Grad-CAM"] = {
        layer: lambda v, x, layer=layer: class_activation(model, v, x, layer, target) for layer in layers
    }
    found["gradient"] = {"input": lambda v, x: input_gradient(model, v, x, target)}
    return found


def _for_polyp(logits: jax.Array) -> jax.Array:
    """How much the logit of the class with a polyp exceeds the other."""
    return logits[:, POLYP] - logits[:, 1 - POLYP]


def maps_of(network: Network, compute: Callable[..., Any], images: np.ndarray, size: int) -> np.ndarray:
    """Maps of all frames at the size of the frames, which the network sees as much smaller as it saw its crops.

    The last batch is filled up with its last frame.

    Raises:
      NotFiniteError: a map is NaN or Inf.
    """
    preprocessing = preprocessing_of(network.experiment, network.restored.inputs)
    assert preprocessing is not None  # networks classify images
    mean, std = (np.array(v, np.float32) for v in (preprocessing.mean, preprocessing.std))
    scale = preprocessing.size[0] / DATA["kvasir_crops"][0][0]
    height, width = images.shape[1:3]
    seen = (round(scale * height), round(scale * width))

    @jax.jit
    def program(variables: Any, batch: jax.Array) -> jax.Array:
        resized = jax.image.resize(batch.astype(jnp.float32) / 255, (size, *seen, 3), "linear")
        normalised = (resized - mean.reshape(1, 1, 1, -1)) / std.reshape(1, 1, 1, -1)
        return resize_maps(compute(variables, normalised), (height, width))

    parts = []
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        padded = np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), 0)])
        parts.append(np.asarray(program(network.restored.variables, padded))[: len(batch)])
    maps = np.concatenate(parts)
    if not np.isfinite(maps).all():
        raise NotFiniteError(f"{network.name}: expected finite maps, found NaN or Inf")
    return maps


def centre_maps(count: int, shape: tuple[int, int], deviation: float) -> np.ndarray:
    """The same map for every frame: a Gaussian around the centre, its deviation relative to the side."""
    rows, columns = (np.linspace(-0.5, 0.5, n) for n in shape)
    one = np.exp(-(rows[:, None] ** 2 + columns[None, :] ** 2) / (2 * deviation**2))
    return np.broadcast_to(one, (count, *shape))


def blurred(maps: np.ndarray, deviation: float) -> np.ndarray:
    """Maps (frames, height, width), each under a Gaussian filter."""
    return (
        maps
        if deviation == 0
        else import_extra("scipy.ndimage", "experiments").gaussian_filter(maps, (0, deviation, deviation))
    )


def overlaps(maps: np.ndarray, masks: np.ndarray, how: float | None) -> np.ndarray:
    """The Jaccard index of every frame."""
    return np.array([jaccard(binarise(one, how), mask) for one, mask in zip(maps, masks, strict=True)])


def choose(variants: dict[str, MakeMaps], validation: Frames, test: Frames) -> Chosen:
    """The variant with the best mean Jaccard index on the validation frames, its best share, and its test scores."""
    maps = {name: make(validation) for name, make in variants.items()}
    means = {name: float(overlaps(found, validation.masks, None).mean()) for name, found in maps.items()}
    best = max(means, key=means.__getitem__)
    shares = {share: overlaps(maps[best], validation.masks, share).mean() for share in SHARES}
    share, on_test = max(shares, key=shares.__getitem__), variants[best](test)
    scores = {"otsu": overlaps(on_test, test.masks, None), "share": overlaps(on_test, test.masks, share)}
    pairs = zip(on_test, test.masks, strict=True)
    scores["pointing"] = np.array([points_inside(one, mask) for one, mask in pairs])
    return Chosen(best, share, means[best], scores, on_test)


def localise(args: Args) -> dict[str, Any]:
    """Scores all networks; the record, JSON-able, that is written too.

    Raises:
      UserError, ValueError, OSError: an option, a run or the frames cannot be used.
      NotFiniteError: a map is NaN or Inf.
    """
    networks = read_networks(args.runs, None)
    for network in networks:
        if network.experiment.data.name != "kvasir_crops":
            raise UserError(f"{network.name}: expected a run of kvasir_crops, found {network.experiment.data.name}")
        if not isinstance(network.model, VGG):
            raise UserError(f"{network.name}: expected a VGG, found {type(network.model).__name__}")
    validation, test = (read_split(args.frames, split, args.limit) for split in ("validation", "test"))
    rows: list[dict[str, Any]] = []
    shown: dict[tuple[str, str], Chosen] = {}
    for arm, seed, kind, chosen in tqdm(_all(networks, validation, test, args), unit="kind of map", disable=None):
        row: dict[str, Any] = {"arm": arm, "seed": seed, "kind": kind, "variant": chosen.variant}
        row |= {"threshold": chosen.share, "validation": chosen.validation}
        rows.append(row | {name: np.round(values, 6).tolist() for name, values in chosen.scores.items()})
        shown.setdefault((arm, kind), chosen)
    summary = [_summary(*key, rows, args.resamples) for key in dict.fromkeys((r["arm"], r["kind"]) for r in rows)]
    settings = {"shares": SHARES, "blurs": BLURS, "centres": CENTRES, "resamples": args.resamples}
    settings |= {"validation": len(validation.names), "test": test.names}
    found = seal({"settings": settings, "summary": summary, "rows": rows, "facts": provenance.gather()})
    with writing_to(args.out):
        args.out.mkdir(parents=True, exist_ok=True)
        write_json(args.out / "localise.json", found)
        draw(args.out / "localise.png", test, shown)
        write_page(args.out / "localise.md", found)
    return found


def _all(
    networks: Sequence[Network], validation: Frames, test: Frames, args: Args
) -> Iterator[tuple[str, int | None, str, Chosen]]:
    """Arm, seed and kind of map of everything that is scored."""

    def centred(deviation: float) -> MakeMaps:
        return lambda frames: centre_maps(len(frames.names), (frames.masks.shape[1], frames.masks.shape[2]), deviation)

    def under_blur(make: MakeMaps, deviation: float) -> MakeMaps:
        return lambda frames: blurred(make(frames), deviation)

    yield "none", None, "centre", choose({f"{d:g}": centred(d) for d in CENTRES}, validation, test)
    for network in networks:
        for kind, variants in kinds_of(network).items():
            makes = {name: _kept(network, compute, args.batch_size) for name, compute in variants.items()}
            if kind == "gradient":
                makes = {f"blur {b:g}": under_blur(makes["input"], b) for b in BLURS}
            yield network.arm, network.seed, kind, choose(makes, validation, test)


def _kept(network: Network, compute: Callable[..., Any], size: int) -> MakeMaps:
    """Maps of frames, computed once for each split."""
    kept: dict[int, np.ndarray] = {}

    def make(frames: Frames) -> np.ndarray:
        if id(frames) not in kept:
            kept[id(frames)] = maps_of(network, compute, frames.images, size)
        return kept[id(frames)]

    return make


def _summary(arm: str, kind: str, rows: Sequence[dict[str, Any]], resamples: int) -> dict[str, Any]:
    """Means over frames, whose scores are means over seeds, with 95 % intervals of a bootstrap over frames."""
    members = [row for row in rows if (row["arm"], row["kind"]) == (arm, kind)]
    found: dict[str, Any] = {"arm": arm, "kind": kind, "seeds": len(members)}
    found |= {f"{name}s": sorted({row[name] for row in members}) for name in ("variant", "threshold")}
    for name in ("otsu", "share", "pointing"):
        values = np.mean([row[name] for row in members], 0)
        interval = bootstrap(np.mean, (values,), np.arange(len(values)).astype(str), n_resamples=resamples)
        found[name] = {"mean": float(interval.value), "low": float(interval.low), "high": float(interval.high)}
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    args = tyro.cli(Args, args=argv, prog="python -m experiments.localise")
    for name in ("limit", "batch_size", "resamples"):
        if getattr(args, name) is not None:
            check_integer(f"--{name.replace('_', '-')}", getattr(args, name), 1)
    found = localise(args)
    maps, frames = len(found["rows"]), len(found["settings"]["test"])
    print(f"{maps} kinds of maps on {frames} test frames: {args.out / 'localise.md'}")


if __name__ == "__main__":
    run_main(main)
