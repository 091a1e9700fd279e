"""What a network's features are worth elsewhere: ``python -m experiments.transfer RUN... --to digits --out FOLDER``.

A linear support vector machine learns another data set from the features that a trained network classifies, of images
that pass the network's own preprocessing. Beside it stand two references: the pixels themselves, and the features of
the same network with its initial weights.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import fsg_jax as fsg
from experiments import pretrained, provenance, xla_flags
from experiments.errors import NotFiniteError, UserError, run_main
from experiments.image_files import decode, find_images
from experiments.networks import Network, cell, over_seeds, read_networks, wilson
from experiments.report.text_table import Table, text
from experiments.run_folder import seal, writing_to
from experiments.sources import preprocessing_of
from fsg_jax import data
from fsg_jax._checks import check_integer, expect
from fsg_jax._files import check_file, write_json, write_text
from fsg_jax.data.extras import import_extra
from fsg_jax.linen.forward import Forward, find_flag
from fsg_jax.pretrained.preprocessing import Preprocessing
from fsg_jax.routing.labels import paths_of
from fsg_jax.training.checkpoint_files import checksums

SPLITS = ("train", "test")
FEATURES = ("pixels", "untrained", "trained")
LIMIT = 2**32
"""Bytes of a .npz."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Args:
    """Accuracy of a linear SVM on the features of trained networks, for another data set."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Runs of image classifications, their checkpoints, or folders of runs."""
    to: str
    """digits; a .npz file with train_images, train_labels, test_images and test_labels, the images uint8 (images,
    height, width, 1 or 3); or a folder with train/CLASS/... and test/CLASS/... of image files."""
    out: Path
    """Folder for transfer.json and transfer.md; those that are there are replaced."""
    costs: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
    """Values of the SVM's C, of which cross-validation on the training images chooses one."""
    folds: int = 5
    """Of the cross-validation."""
    iterations: int = 5000
    """At most, of a fit."""
    batch_size: int = 100


class Target(NamedTuple):
    """A data set with its own training and test split, by split."""

    images: dict[str, list[np.ndarray]]
    """uint8 (height, width, 1 or 3); sizes may differ."""
    labels: dict[str, np.ndarray]


class Fit(NamedTuple):
    """A linear SVM on some features."""

    accuracy: float
    """Of the test images."""
    accuracy_low: float
    """Of its 95 % interval."""
    accuracy_high: float
    cost: float
    validation: float
    """Mean accuracy over the folds, at that cost."""
    dimensions: int
    converged: bool


def transfer(args: Args) -> dict[str, Any]:
    """Fits all SVMs; the record, JSON-able, that is written too.

    Raises:
      UserError, ValueError, OSError: an option, a run or the target cannot be used.
      NotFiniteError: a network gives NaN or Inf.
      ImportError: scikit-learn is not installed.
    """
    networks, target = read_networks(args.runs, None), load_target(args.to)
    check_target(target, args)
    fit_pixels = cache(lambda size: fit(pixels(target, size), target, args))
    programs = {network.arm: make_features(network, args.batch_size) for network in networks}
    rows: list[Row] = []
    notes = []
    for network in networks:
        preprocessing = cast(Preprocessing, preprocessing_of(network.experiment, network.restored.inputs))
        images = {split: prepared(target.images[split], preprocessing) for split in SPLITS}
        initial, same = initial_variables(network)
        if not same:
            notes.append(f"{network.name}: its initial weights differ from those recorded, as on another machine.")
        if network.experiment.data.name == args.to:
            notes.append(f"{network.name}: it was trained on {args.to}, so that this is no transfer.")
        fits = {"pixels": fit_pixels(preprocessing.size)}
        for name, variables in (("untrained", initial), ("trained", network.restored.variables)):
            compute = partial(programs[network.arm], variables)
            fits[name] = fit({split: compute(images[split]) for split in SPLITS}, target, args)
        for name, one in fits.items():
            rows.append({"network": network.name, "arm": network.arm, "seed": network.seed, "features": name})
            rows[-1] |= one._asdict()
            notes += doubts("pixels" if name == "pixels" else f"{network.name}, {name}", one, args)
    facts = provenance.gather()
    facts["versions"]["scikit-learn"] = import_extra("sklearn", "experiments").__version__
    options = {"to": args.to if args.to == "digits" else Path(args.to).name, "costs": args.costs, "folds": args.folds}
    options |= {"iterations": args.iterations, "classes": len(np.unique(target.labels["train"]))}
    found = {
        "settings": options | {f"num_{split}": len(target.labels[split]) for split in SPLITS},
        "rows": rows,
        "arms": over_seeds(rows, ("arm", "features"), ("accuracy",)),
        "warnings": list(dict.fromkeys(notes)),
        "facts": facts,
    }
    found = seal(found)
    with writing_to(args.out):
        args.out.mkdir(parents=True, exist_ok=True)
        write_json(args.out / "transfer.json", found)
        write_text(args.out / "transfer.md", page(found))
    return found


def load_target(name: str) -> Target:
    """The data set that `Args.to` names.

    Raises:
      UserError, ValueError, OSError: it is none, or damaged; what is wrong is named.
    """
    if name == "digits":
        sets = {split: data.load_digits(split) for split in SPLITS}
        return Target({s: list(found.images) for s, found in sets.items()}, {s: sets[s].labels for s in SPLITS})
    path = Path(name)
    if path.is_dir():
        return _from_folder(path)
    if path.suffix != ".npz":
        raise UserError(f"--to: expected digits, a .npz file or a folder with train and test, found {name}")
    check_file(path, LIMIT)
    try:
        with np.load(path, allow_pickle=False) as archive:
            keys = [f"{split}_{what}" for split in SPLITS for what in ("images", "labels")]
            arrays = {key: archive[key] for key in keys if key in archive}
    except Exception as error:  # a damaged archive can raise nearly anything
        raise ValueError(f"{path}: expected an .npz without pickles, found {error}") from error
    for key in keys:
        expect(key in arrays, f"{path}: {key}", "an array", f"none among {sorted(arrays)}")
    for split in SPLITS:
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        right = images.dtype == np.uint8 and images.ndim == 4 and images.shape[-1] in (1, 3) and images.size
        wanted = "uint8 (images, height, width, 1 or 3)"
        expect(right, f"{path}: {split}_images", wanted, f"{images.dtype} {images.shape}")
        right = labels.dtype.kind in "iu" and labels.shape == images.shape[:1]
        wanted = f"integers of shape ({len(images)},), a label an image"
        expect(right, f"{path}: {split}_labels", wanted, f"{labels.dtype} {labels.shape}")
    return Target({s: list(arrays[f"{s}_images"]) for s in SPLITS}, {s: arrays[f"{s}_labels"] for s in SPLITS})


def _from_folder(path: Path) -> Target:
    """Images in ``train/CLASS`` and ``test/CLASS``, as RGB."""
    names = sorted(folder.name for folder in (path / "train").glob("*") if folder.is_dir())
    expect(names, str(path), "folders train/CLASS of images, and test/CLASS", "none")
    images: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    labels: dict[str, list[int]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        for label, name in enumerate(names):
            for file in find_images([str(path / split / name)]).images:
                try:
                    images[split].append(np.asarray(decode(file, 3)))
                except Exception as error:  # Pillow raises errors of any type
                    raise ValueError(f"{file}: expected an image, found {error}") from error
                labels[split].append(label)
    others = {folder.name for folder in (path / "test").glob("*") if folder.is_dir()} - set(names)
    expect(not others, str(path / "test"), f"the classes of train, {names}", f"{sorted(others)} too")
    return Target(images, {split: np.array(found) for split, found in labels.items()})


def check_target(target: Target, args: Args) -> None:
    """Raises ValueError unless an SVM can learn the target by cross-validation and be tested on it."""
    classes, counts = np.unique(target.labels["train"], return_counts=True)
    expect(len(classes) > 1, f"{args.to}: train labels", "two classes or more", classes.tolist())
    enough = f"{args.folds} images or more of every class, one a fold"
    few = {int(label): int(count) for label, count in zip(classes, counts, strict=True) if count < args.folds}
    expect(not few, f"{args.to}: train labels", enough, f"by class {few}")
    unknown = sorted(set(target.labels["test"].tolist()) - set(classes.tolist()))
    expect(not unknown, f"{args.to}: test labels", "those of the training images", f"{unknown} too")


def prepared(images: Iterable[np.ndarray], preprocessing: Preprocessing) -> np.ndarray:
    """The inputs of the network; grey images are repeated for three channels, colours become grey for one."""
    pillow = import_extra("PIL.Image", "pretrained")
    return np.stack([preprocessing(pillow.fromarray(x[..., 0] if x.shape[-1] == 1 else x)) for x in images])


def pixels(target: Target, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """The values of the images in [0, 1]; of images that differ in size, or are larger than `size`, those at `size`."""
    shapes = {image.shape for images in target.images.values() for image in images}
    if len(shapes) == 1 and np.prod(next(iter(shapes))[:2]) <= np.prod(size):
        found = {split: np.stack(images) / np.float32(255) for split, images in target.images.items()}
    else:
        channels = max(shape[-1] for shape in shapes)
        plain = Preprocessing((0.0,) * channels, (1.0,) * channels, size, 1.0, "bilinear")
        found = {split: prepared(images, plain) for split, images in target.images.items()}
    return {split: images.reshape(len(images), -1) for split, images in found.items()}


def make_features(network: Network, batch_size: int) -> Callable[[Any, np.ndarray], np.ndarray]:
    """``compute(variables, inputs)``: what the network classifies, (images, features), in evaluation."""
    model = network.model.clone(num_classes=0)
    forward = Forward(model, find_flag(model, "auto"), (), ())
    call = jax.jit(lambda variables, images: forward.evaluate(variables, (images,))[0].astype(jnp.float32))

    def compute(variables: Any, inputs: np.ndarray) -> np.ndarray:
        size, found = min(batch_size, len(inputs)), []
        for start in range(0, len(inputs), size):
            part = inputs[start : start + size]
            padded = np.pad(part, [(0, size - len(part)), (0, 0), (0, 0), (0, 0)])
            found.append(np.asarray(call(variables, padded))[: len(part)])
        features = np.concatenate(found)
        if not np.isfinite(features).all():
            raise NotFiniteError(f"{network.arm}: expected finite features, found NaN or Inf")
        return features

    return compute


def initial_variables(network: Network) -> tuple[dict[str, Any], bool]:
    """The variables with which the run began, and whether their checksums are those that it recorded."""
    restored, experiment = network.restored, network.experiment
    example = jnp.zeros(restored.inputs.shape, restored.inputs.dtype)
    variables = fsg.init_state(restored.model, optax.identity(), jax.random.key(network.seed), example).variables
    if (start := experiment.model.pretrained) is not None:
        channels, part = example.shape[-1], experiment.model.pretrained_part
        weights = pretrained.load(start, channels, experiment.data.image_size, part)
        variables = pretrained.starting_from(variables, restored.model, {"": weights})
    params = variables["params"]
    found = checksums(dict(zip(paths_of(params), map(np.asarray, jax.tree.leaves(params)), strict=True)))
    return variables, found == restored.saved.extra.get("initial_weights")


def fit(features: dict[str, np.ndarray], target: Target, args: Args) -> Fit:
    """A linear SVM on standardised features, its C chosen by cross-validation on the training images; then tested."""
    pipeline, svm = import_extra("sklearn.pipeline", "experiments"), import_extra("sklearn.svm", "experiments")
    selection = import_extra("sklearn.model_selection", "experiments")
    scaler = import_extra("sklearn.preprocessing", "experiments").StandardScaler()
    machine = svm.LinearSVC(dual="auto", max_iter=args.iterations, random_state=0)
    folds = selection.StratifiedKFold(args.folds, shuffle=True, random_state=0)
    grid = {"linearsvc__C": sorted(args.costs)}  # the smallest of equally good ones is taken
    search = selection.GridSearchCV(pipeline.make_pipeline(scaler, machine), grid, cv=folds, error_score="raise")
    with warnings.catch_warnings():  # of the last fit `converged` tells
        warnings.simplefilter("ignore", import_extra("sklearn.exceptions", "experiments").ConvergenceWarning)
        search.fit(features["train"], target.labels["train"])
    right = search.predict(features["test"]) == target.labels["test"]
    last = search.best_estimator_[-1]
    low, high = wilson(right.sum(), len(right))
    chosen, validation = float(last.C), float(search.best_score_)
    converged = bool(np.max(last.n_iter_) < args.iterations)
    return Fit(float(right.mean()), low, high, chosen, validation, features["train"].shape[1], converged)


def doubts(name: str, found: Fit, args: Args) -> list[str]:
    """What makes an accuracy less than it could be, a sentence each."""
    notes = []
    if not found.converged:
        notes.append(f"{name}: the SVM stopped after {args.iterations} iterations (--iterations) before it converged.")
    if len(args.costs) > 1 and found.cost in (min(args.costs), max(args.costs)):
        notes.append(f"{name}: C = {found.cost:g} is at the end of what was tried (--costs).")
    return notes


def table(found: dict[str, Any]) -> Table:
    """A row an arm: mean and deviation over its seeds of the accuracy on each kind of features, in %."""
    lines = []
    for arm in dict.fromkeys(row["arm"] for row in found["rows"]):
        rows = [row for row in found["rows"] if row["arm"] == arm]
        groups = {name: [row for row in rows if row["features"] == name] for name in FEATURES}
        single = groups["pixels"][0] | {"seed": None}  # equal for all seeds
        cells = [cell([single], "accuracy"), *(cell(groups[name], "accuracy") for name in FEATURES[1:])]
        lines.append((arm, str(len(groups["trained"])), str(rows[-1]["dimensions"]), *cells))
    return Table(("arm", "seeds", "features", "pixels, %", "untrained, %", "trained, %"), lines)


def page(found: dict[str, Any]) -> str:
    """The table in Markdown, that of single runs, and how they were made."""
    options = found["settings"]
    costs = ", ".join(f"{cost:g}" for cost in options["costs"])
    single = [
        (row["network"], row["features"], str(row["dimensions"]), cell([row], "accuracy"), f"{row['cost']:g}")
        for row in found["rows"]
    ]
    columns = ("network", "of", "features", "accuracy, %", "C")
    facts = [(name, text(value)) for name, value in found["facts"].items() if name != "sha256"]
    parts = [
        f"# Transfer to {options['to']}",
        f"A linear SVM on standardised features, {options['num_train']} training and {options['num_test']} test images "
        f"of {options['classes']} classes; C of {costs} by {options['folds']}-fold cross-validation on the training "
        "images. Cells are mean ± standard deviation over seeds, or the accuracy and its 95 % interval over test "
        "images (Wilson). Untrained is the same network with its initial weights.",
        table(found).markdown(),
        f"## Single networks\n\n{Table(columns, single).markdown()}",
    ]
    if found["warnings"]:
        parts.append("## Warnings\n\n" + "\n".join(f"- {note}" for note in found["warnings"]))
    parts.append(f"## Origin\n\n{Table(('fact', 'value'), facts, numeric=False).markdown()}")
    return "\n\n".join(parts) + "\n"


def check(args: Args) -> None:
    """Raises ValueError where an option is out of its range."""
    check_integer("--folds", args.folds, 2)
    check_integer("--iterations", args.iterations, 1)
    check_integer("--batch-size", args.batch_size, 1)
    right = args.costs and all(0 < cost < np.inf for cost in args.costs)
    expect(right, "--costs", "finite numbers above 0", args.costs)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    args = tyro.cli(Args, args=argv, prog="python -m experiments.transfer")
    check(args)
    xla_flags.speed_up_convolutions()
    found = transfer(args)
    print(table(found).markdown())
    for note in found["warnings"]:
        print(f"warning: {note}")
    print(f"\nin {args.out}")


if __name__ == "__main__":
    run_main(main)
