"""Accuracy against FLOPs of a ResNet-18 on CIFAR-100 that is pruned 2, 4 and 8 times, by three scores.

    python examples/studies/pruning_study.py --data cifar100.npz --out runs/pruning --seeds 0 1 2
    python examples/studies/pruning_study.py --out runs/pruning --latency

A network with gates inside its blocks is trained by gradient routing; then, for each score and budget, channels go,
BatchNorm is measured anew on training images, the network is tested, trained on for a while, and tested again. Nothing
is chosen by the test images. Writes ``pruning.jsonl``, a row a network; ``--latency`` measures the time of a batch of
folded networks instead. The defaults suit two CPU cores for an hour.
"""

import argparse
import json
import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import fsg_jax as fsg
from experiments import prune, sources
from experiments.classification import evaluation_transform, load_split
from experiments.config import change
from experiments.configs import CONFIGS
from experiments.train import train

SCORES, TIMES, FILE = ("gate", "magnitude", "random"), (2, 4, 8), "pruning.jsonl"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="CIFAR-100, as for experiments.train")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--no-checksum", action="store_true", help="of the data, where they are not the original files")
    parser.add_argument("--arm", default="fsg_gr")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--images", type=int, default=10000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--tuning-epochs", type=int, default=1)
    parser.add_argument("--latency", action="store_true")
    args = parser.parse_args()
    if args.latency:
        return latency(args.out)
    for seed in args.seeds:
        study(args, seed)


def study(args: argparse.Namespace, seed: int) -> None:
    """Trains the network of one seed, and all that come from it."""
    base = change(
        CONFIGS["cifar100_resnet18"][0],
        {
            "data.path": args.data,
            "data.checksum": not args.no_checksum,
            "data.num_train": args.images,
            "model.width": args.width,
            "model.gate_placement": "hidden",
            "train.epochs": args.epochs,
            "train.dtype": "float32",
            "optimizer.warmup_epochs": 1.0,
        },
    )
    run = args.out / f"base-{seed}"
    record = train(base, args.arm, seed, run, resume=True)
    rows = [json.loads(line) for line in file.read_text().splitlines()] if (file := args.out / FILE).exists() else []
    finished = {(row["score"], row["times"], row["seed"]) for row in rows}
    if ("none", 1, seed) not in finished:
        write(args.out, {"seed": seed, "score": "none", "times": 1, "after": record["test"]["accuracy"]})
    for times in TIMES:
        for score in SCORES if args.arm != "baseline" else SCORES[1:]:
            folder = args.out / f"{score}-{times}-{seed}"
            row = {"seed": seed, "score": score, "times": times}
            if (score, times, seed) in finished:
                continue
            for unfinished in (folder, args.out / f"tuned-{folder.name}"):
                shutil.rmtree(unfinished, ignore_errors=True)
            options = {"flops": f"{100 / times}%", "divisor": 1, "min_keep": 1, "score": score, "seed": seed}
            table = prune.prune(prune.Args(str(run), folder, calibrate=16, **options)).table
            row |= {"flops": table.flops[1] / table.flops[0], "params": table.parameters[1] / table.parameters[0]}
            row["before"] = test_accuracy(base, folder)
            tuning = {"train.epochs": args.tuning_epochs, "optimizer.learning_rate": 0.02}
            tuning |= {"model.pretrained": str(folder), "model.pretrained_part": "all", "optimizer.warmup_epochs": 0.1}
            tuned = train(change(base, tuning), args.arm, seed, args.out / f"tuned-{folder.name}", resume=True)
            write(args.out, row | {"after": tuned["test"]["accuracy"]})


def test_accuracy(experiment, folder: Path) -> float:
    """Of a saved network on the test images."""
    model, variables, _ = fsg.load_pretrained(folder)
    test, prepare = load_split(experiment.data, "test"), evaluation_transform(experiment)
    predict = jax.jit(lambda x: model.apply(variables, prepare(jax.random.key(0), {"image": x})["image"]).argmax(-1))
    found = [predict(jnp.asarray(test.images[i : i + 500])) for i in range(0, len(test), 500)]
    return float(np.mean(np.concatenate(found) == test.labels))


def write(out: Path, row: dict) -> None:
    """Appends a row, and shows it."""
    with (out / FILE).open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(row, flush=True)


def latency(out: Path) -> None:
    """Median time of a batch of 64 over that of the whole network, folded networks taking turns in one process."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 32, 32, 3)), jnp.float32)
    networks = {}
    for path in [out / "base-0", *sorted(out.glob("*-[248]-0"))]:
        if path.name.startswith("tuned"):
            continue
        source = sources.load(str(path))
        model, variables = fsg.fold_gates(source.model, source.variables)
        networks[path.name] = jax.jit(lambda x, model=model, variables=variables: model.apply(variables, x))
        networks[path.name](x).block_until_ready()
    times = {name: [] for name in networks}
    for _ in range(30):
        for name, call in networks.items():
            began = time.perf_counter()
            call(x).block_until_ready()
            times[name].append(time.perf_counter() - began)
    medians = {name: float(np.median(values)) for name, values in times.items()}
    for name, value in medians.items():
        print(f"{name}: {1000 * value:.2f} ms, {value / medians['base-0']:.3f} of the whole")


if __name__ == "__main__":
    main()
