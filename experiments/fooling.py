"""How little fools a classifier: ``python -m experiments.fooling RUN RUN... --out FOLDER``, curves over epsilon.

FGSM and PGD raise the cross-entropy of the true label of test images, which they change by at most epsilon a value;
the examples made on the first RUN are tried on the others too (transfer). A vanishing gradient also stops attacks, and
no network is robust for that: what points to it is counted and said (Athalye et al. 2018).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.progress import track

import fsg_jax as fsg
from experiments import provenance, xla_flags
from experiments.classification import load_split, normalization, resizing
from experiments.errors import NotFiniteError, UserError, run_main
from experiments.networks import Network, read_networks, wilson
from experiments.run_folder import seal, writing_to
from fsg_jax import augment, data
from fsg_jax._checks import check_integer, check_positive, expect
from fsg_jax._files import write_json
from fsg_jax.data.extras import import_extra
from fsg_jax.explain.adversarial import loss_gradient, project, random_start
from fsg_jax.linen.forward import Forward, find_flag

CLEAN = ("clean", 0.0)
TINY = 1e-12
"""A gradient of which no value is larger is as good as none; the losses are in nats, the images in [0, 1]."""
LEVEL = 0.01
"""Of the sign test by which PGD is weaker than FGSM."""
UNMOVED = 0.05
"""A larger share of images whose loss PGD does not raise is doubtful: gradients may be zero, or rounding errors."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Args:
    """Fooling rates and accuracies under attack, of networks that are compared."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Runs of image classifications, their checkpoints, or folders of runs; the first is the control and the source of
    the transfer."""
    out: Path
    """Folder for fooling.json, fooling.md and fooling.png; those that are there are replaced."""
    data_path: Annotated[Path | None, tyro.conf.arg(name="data.path")] = None
    """CIFAR-100, if it is no longer where the runs found it."""
    epsilons: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
    """Largest changes of a value, on the scale from 0 to 255."""
    steps: int = 10
    """Of PGD."""
    step: float = 0.25
    """Length of a step of PGD, as a share of epsilon."""
    images: int | None = None
    """Test on this many test images, stratified and fixed; None: all."""
    batch_size: int = 100
    seed: int = 0
    """Of the starts of PGD."""


class Program(NamedTuple):
    """What the networks of one arm compute with, compiled once."""

    classify: Callable[..., tuple[Any, Any, Any]]
    """``(variables, images, labels)``: class and loss of each image, and whether its outputs are finite."""
    climb: Callable[..., tuple[Any, Any]]
    """``(variables, x, images, labels, epsilon, step)``: a step from `x`, and the largest gradient of each image."""


class Outcome(NamedTuple):
    """What a network makes of every image, (images,)."""

    classes: np.ndarray
    losses: np.ndarray


class Parts(NamedTuple):
    """Of the batches so far, for one network."""

    gradients: list[np.ndarray]
    outcomes: dict[tuple[str, float], list[Outcome]]


class Measured(NamedTuple):
    """A network under attack."""

    network: Network
    labels: np.ndarray
    clean: Outcome
    gradients: np.ndarray
    """The largest absolute value of the gradient at each unchanged image."""
    attacked: dict[tuple[str, float], Outcome]
    """By attack (those of the transfer begin with ``transfer_``) and epsilon."""


def fooling(args: Args) -> dict[str, Any]:
    """Attacks the networks; the record, JSON-able, that is written too.

    Raises:
      UserError, ValueError, OSError: an option, a run or its data cannot be used.
      NotFiniteError: a network gives NaN or Inf.
    """
    networks = read_networks(args.runs, args.data_path)
    rows, test = test_images(networks, args.images)
    measured = attack(networks, test, rows, args)
    records = [row for one in measured for row in rates(one)]
    found = {
        "settings": {k: v for k, v in asdict(args).items() if k not in ("runs", "out", "data_path")}
        | {"images": len(test), "source": networks[0].name, "control": networks[0].arm},
        "networks": [about(one) for one in measured],
        "rows": records,
        "warnings": [text for one in measured for text in doubts(one)],
        "facts": provenance.gather(),
    }
    from experiments.fooling_report import compare, draw, write_page  # draws with matplotlib

    found = seal(found | compare(records, networks[0].arm))
    with writing_to(args.out):
        args.out.mkdir(parents=True, exist_ok=True)
        write_json(args.out / "fooling.json", found)
        draw(args.out / "fooling.png", records)
        write_page(args.out / "fooling.md", found)
    return found


def test_images(networks: Sequence[Network], count: int | None) -> tuple[np.ndarray, data.ImageDataset]:
    """The test images that all networks share, or `count` of them, and their rows.

    Raises:
      UserError: the networks have other test images, or see them at another size.
      ValueError: there are not as many.
    """
    test, size = (first := load_split(networks[0].experiment.data, "test")), networks[0].experiment.data.image_size
    for network in networks[1:]:
        other = load_split(network.experiment.data, "test")
        same = other is first or (np.array_equal(other.images, first.images) and (other.labels == first.labels).all())
        if not same or network.experiment.data.image_size != size:
            wanted = f"the test images of {networks[0].name}, at the same size"
            raise UserError(f"{network.name}: expected {wanted}, found others")
    rows = np.arange(len(test))
    if count is not None:
        check_integer("--images", count, 1, len(test))
        if count < len(test):
            rows = data.stratified_holdout(test.labels, count)[1]
    return rows, test.take(rows)


def make_program(network: Network) -> Program:
    """The compiled functions of a network's arm, on images in [0, 1] at the size of the network's inputs."""
    forward, normalize = (
        Forward(network.model, find_flag(network.model, "auto"), (), ()),
        normalization(network.experiment),
    )

    def losses(variables: Any, labels: Any, images: Any) -> tuple[Any, Any]:
        outputs = forward.evaluate(variables, (normalize(jax.random.key(0), {"image": images})["image"],))[0]
        return fsg.losses.cross_entropy(outputs, {"label": labels}), outputs

    def classify(variables: Any, images: Any, labels: Any) -> tuple[Any, Any, Any]:
        loss, outputs = losses(variables, labels, images)
        return outputs.argmax(-1), loss, jnp.isfinite(outputs).all(-1) & jnp.isfinite(loss)

    def climb(variables: Any, x: Any, images: Any, labels: Any, epsilon: Any, step: Any) -> tuple[Any, Any]:
        gradient = loss_gradient(lambda x: losses(variables, labels, x)[0], x)
        return project(x + step * jnp.sign(gradient), images, epsilon), jnp.abs(gradient).max((1, 2, 3))

    return Program(jax.jit(classify), jax.jit(climb))


def attack(networks: Sequence[Network], test: data.ImageDataset, rows: np.ndarray, args: Args) -> list[Measured]:
    """All networks on all images; the starts of PGD depend on the seed and the row of an image alone.

    Raises:
      NotFiniteError: a network gives NaN or Inf.
    """
    programs = {network.arm: make_program(network) for network in networks}
    prepare = jax.jit(augment.chain(*resizing(networks[0].experiment.data), augment.to_float()))
    keys_of = jax.jit(jax.vmap(partial(jax.random.fold_in, jax.random.key(args.seed))))
    size, found = min(args.batch_size, len(test)), [Parts([], {}) for _ in networks]
    batches, title = data.eval_batches(test, size), f"attacking {len(networks)} networks"
    for batch in track(batches, title, -(-len(test) // size), console=Console(stderr=True)):
        images, labels = prepare(jax.random.key(0), {"image": batch["image"]})["image"], jnp.asarray(batch["label"])
        keys, there = keys_of(rows[np.maximum(batch["index"], 0)]), batch["valid"]
        transferred: dict[tuple[str, float], jax.Array] = {}
        for network, (gradients, outcomes) in zip(networks, found, strict=True):
            program, variables = programs[network.arm], network.restored.variables
            gradients.append(np.asarray(program.climb(variables, images, images, labels, 0.0, 0.0)[1])[there])
            own = dict(examples(program, variables, images, labels, keys, args))
            for key, x in {CLEAN: images, **transferred, **own}.items():
                classes, losses, finite = (np.asarray(part)[there] for part in program.classify(variables, x, labels))
                if not finite.all():
                    raise NotFiniteError(f"{network.name}: expected finite outputs, found NaN or Inf")
                outcomes.setdefault(key, []).append(Outcome(classes, losses))
            transferred = transferred or {(f"transfer_{name}", epsilon): x for (name, epsilon), x in own.items()}
    return [_joined(network, test.labels, parts) for network, parts in zip(networks, found, strict=True)]


def examples(
    program: Program, variables: Any, images: jax.Array, labels: jax.Array, keys: jax.Array, args: Args
) -> Iterator[tuple[tuple[str, float], jax.Array]]:
    """The adversarial examples by attack and epsilon: those of `fsg_jax.explain`, step by step.

    A loop inside a program runs its convolutions on one core of a CPU.
    """
    climb = partial(program.climb, variables)
    for epsilon in args.epsilons:
        radius = epsilon / 255
        yield ("fgsm", epsilon), climb(images, images, labels, radius, radius)[0]
        x = _start(images, radius, keys)
        for _ in range(args.steps):
            x, _ = climb(x, images, labels, radius, args.step * radius)
        yield ("pgd", epsilon), x


_start = jax.jit(random_start)


def _joined(network: Network, labels: np.ndarray, parts: Parts) -> Measured:
    outcomes = {k: Outcome(*map(np.concatenate, zip(*v, strict=True))) for k, v in parts.outcomes.items()}
    return Measured(network, labels, outcomes.pop(CLEAN), np.concatenate(parts.gradients), outcomes)


def about(measured: Measured) -> Row:
    """A network without attack, and how many of its gradients vanish."""
    network, right = measured.network, measured.clean.classes == measured.labels
    return {
        **{"network": network.name, "arm": network.arm, "seed": network.seed, "step": network.restored.saved.step},
        **{"dtype": network.experiment.train.dtype, **_share("accuracy", right)},
        "loss": float(measured.clean.losses.mean(dtype=np.float64)),
        "zero_gradient": float((measured.gradients == 0).mean()),
        "tiny_gradient": float((measured.gradients < TINY).mean()),
        "median_gradient": float(np.median(measured.gradients)),
    }


def rates(measured: Measured) -> list[Row]:
    """A row an attack and epsilon.

    ``fooled`` is the share of images whose class changes, ``accuracy`` that of right classes, both with Wilson's 95 %
    interval; ``fooled_of_right`` is the share of wrong classes among images whose class was right, ``unmoved`` that of
    images whose loss is not raised.
    """
    found = []
    for (name, epsilon), outcome in measured.attacked.items():
        right = measured.clean.classes == measured.labels
        wrong = outcome.classes != measured.labels
        row = {"network": measured.network.name, "arm": measured.network.arm, "seed": measured.network.seed}
        row |= {"attack": name, "epsilon": epsilon, "loss": float(outcome.losses.mean(dtype=np.float64))}
        row |= _share("fooled", outcome.classes != measured.clean.classes) | _share("accuracy", ~wrong)
        row["fooled_of_right"] = float(wrong[right].mean()) if right.any() else None
        found.append(row | {"unmoved": float(_unmoved(measured, outcome).mean())})
    return found


def _unmoved(measured: Measured, outcome: Outcome) -> np.ndarray:
    return outcome.losses <= measured.clean.losses


def _share(name: str, hits: np.ndarray) -> Row:
    low, high = wilson(hits.sum(), len(hits))
    return {name: float(hits.mean()), f"{name}_low": low, f"{name}_high": high}


def doubts(measured: Measured) -> list[str]:
    """What says that attacks fail for want of a gradient and not for robustness, a sentence each.

    Gradients that vanish; PGD that does not raise the loss, or fools fewer images than FGSM, by the exact sign test
    over the images that only one of them fools; examples of another network that fool more than its own.
    """
    name, clean, count = measured.network.name, measured.clean.classes, len(measured.labels)
    fooled = {key: outcome.classes != clean for key, outcome in measured.attacked.items()}
    found = []
    if none := int((measured.gradients < TINY).sum()):
        zero = int((measured.gradients == 0).sum())
        found.append(
            f"{name}: the gradient of {none} of {count} images is below {TINY:g} ({zero} exactly 0): FGSM cannot move "
            "what has none, and its curve says nothing of robustness there."
        )
    for (attack_name, epsilon), own in fooled.items():
        kind, still = attack_name.removeprefix("transfer_"), _unmoved(measured, measured.attacked[attack_name, epsilon])
        if attack_name == "pgd" and still.mean() > UNMOVED:
            found.append(
                f"{name}: at epsilon {epsilon:g} PGD does not raise the loss of {still.mean():.1%} of the images."
            )
        if attack_name == "pgd" and (p := _weaker(own, fooled["fgsm", epsilon])) < LEVEL:
            others = f"{fooled['fgsm', epsilon].mean():.1%} (p = {p:.2g})"
            found.append(
                f"{name}: at epsilon {epsilon:g} PGD fools {own.mean():.1%} and FGSM, a weaker attack, {others}."
            )
        if kind != attack_name and (p := _weaker(fooled[kind, epsilon], own)) < LEVEL:
            found.append(
                f"{name}: at epsilon {epsilon:g} examples of another network fool {own.mean():.1%} and its own by "
                f"{kind.upper()} {fooled[kind, epsilon].mean():.1%} (p = {p:.2g})."
            )
    return found


def _weaker(one: np.ndarray, other: np.ndarray) -> float:
    """The p-value of `one` fooling no fewer images than `other`, where only one of the two does."""
    only = int((other & ~one).sum())
    test = import_extra("scipy.stats", "experiments").binomtest
    discordant = int((one ^ other).sum())
    return float(test(only, discordant, alternative="greater").pvalue) if discordant else 1.0


def check(args: Args) -> None:
    """Raises UserError or ValueError where an option is out of its range."""
    for name in ("steps", "batch_size"):
        check_integer(f"--{name.replace('_', '-')}", getattr(args, name), 1)
    check_integer("--seed", args.seed, 0, 2**32 - 1)
    check_positive(**{"--step": args.step})
    right = args.epsilons and all(math.isfinite(e) and 0 < e <= 255 for e in args.epsilons)
    expect(right, "--epsilons", "numbers above 0, up to 255", args.epsilons)
    expect(list(args.epsilons) == sorted(set(args.epsilons)), "--epsilons", "ascending numbers", args.epsilons)
    if args.step * args.steps < 1:
        raise UserError(f"--step: expected steps that reach epsilon, found {args.steps} of {args.step:g} epsilon")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    args = tyro.cli(Args, args=argv, prog="python -m experiments.fooling")
    check(args)
    xla_flags.speed_up_convolutions()
    found = fooling(args)
    from experiments.fooling_report import tables

    for title, table in tables(found).items():
        print(f"{title}\n\n{table.markdown()}\n")
    for text in found["warnings"]:
        print(f"warning: {text}")
    print(f"in {args.out}")


if __name__ == "__main__":
    run_main(main)
