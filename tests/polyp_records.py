"""Made-up runs of polyp sizing: records, predictions and panels as an experiment leaves them."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from fsg_jax.endoscopy import sizing
from fsg_jax.endoscopy.sizing import ClassScheme

FOLDS = 3
POLYPS = 18
SIZES = np.array([2, 3, 4, 4, 5, 5, 6, 7, 7, 8, 9, 10, 10, 12, 13, 15, 15, 18], float)
LAYERS = ("rgb/stage1/gate", "rgb/stage4/gate", "fused/gate", "hidden/gate")
SKILL = {"baseline": 0.45, "fsg": 0.7, "fsg_gr": 0.85}


def predictions(
    arm: str, fold: int, streams: list[str], seed: int = 0, frames: int = 12, scheme: ClassScheme | None = None
) -> pa.Table:
    """Frames of the fold's test polyps; an arm with more skill is nearer to the truth."""
    rng = np.random.default_rng([fold, seed, len(streams), *arm.encode()])
    tested = [index for index in range(POLYPS) if index % FOLDS == fold]
    rows = []
    for index in tested:
        size = SIZES[index]
        drift = rng.normal(0, 1.2)
        for frame in range(frames):
            wave = np.sin(frame / 3 + index)
            predicted = 8 + SKILL.get(arm, 0.6) * (size - 8) + drift + 0.5 * wave + rng.normal(0, 0.3)
            area = 8 + 0.4 * (size - 8) + 1.5 * wave
            rows.append(row(index, frame, fold, size) | sizes(max(float(predicted), 0.5), area, scheme))
    return pa.Table.from_pylist(rows)


def row(index: int, frame: int, fold: int, size: float) -> dict:
    case = f"case{index + 1}"
    return {
        "dataset": "phantom",
        "polyp_id": case,
        "video_id": f"video{index + 1}",
        "patient_id": case,
        "frame_id": f"{case}_{frame + 1}",
        "size_mm": float(size),
        "fold": fold,
    }


def sizes(predicted: float, area: float, scheme: ClassScheme | None) -> dict:
    baselines = {"baseline_mean_mm": 8.0, "baseline_box_area_mm": area}
    if scheme is None:
        return {"predicted_mm": predicted} | baselines
    middles = np.array([3.0, 7.5, 13.0] if scheme.num_classes == 3 else [6.0, 14.0])
    chances = np.exp(-(((predicted - middles) / 3) ** 2))
    chances /= chances.sum()
    return {"predicted_mm": float("nan")} | dict(zip(scheme.columns, chances.tolist(), strict=True)) | baselines


def make_run(
    directory: Path,
    arm: str,
    streams: list[str],
    fold: int,
    *,
    seed: int = 0,
    scheme: ClassScheme | None = None,
    epochs: int = 4,
) -> dict:
    """Writes the files of one run and returns its record."""
    run = Path("runs") / f"{arm}_{'-'.join(streams)}_fold{fold}_seed{seed}"
    (directory / run).mkdir(parents=True, exist_ok=True)
    pq.write_table(predictions(arm, fold, streams, seed, scheme=scheme), directory / run / "predictions.parquet")
    rng = np.random.default_rng([fold, seed, *arm.encode()])
    gates = {layer: rng.beta(3, 2, 24).tolist() for layer in LAYERS} if arm != "baseline" else {}
    return {
        "experiment": "polyp_size",
        "arm": arm,
        "streams": streams,
        "fold": fold,
        "seed": seed,
        "status": "finished",
        "config": {
            "fold": fold,
            "seed": seed,
            "model": {"name": "multistream", "streams": streams, "gates": arm != "baseline"},
            "optimizer": {"learning_rate": 2e-4, "gate_learning_rate": 3e-4},
        },
        "facts": {
            "commit": "abc123",
            "dirty": False,
            "command": "python -m experiments.ablate polyp_size",
            "versions": {"jax": "0.10.2", "flax": "0.12.8"},
            "device": "cpu",
            "started": f"2026-02-0{fold + 1}T12:00:00+00:00",
            "minutes": 2.0 + fold,
            "compile_seconds": 20.5,
        },
        "parameters": {"params": 11_309_825, "gates": 24 * len(gates)},
        "history": [history_row(epoch, gates, rng) for epoch in range(1, epochs + 1)],
        "gates": gates,
        "synthetic": True,
        "data": {
            "polyps": POLYPS,
            "frames": POLYPS * 12,
            "datasets": {"phantom": {"polyps": POLYPS, "frames": POLYPS * 12}},
            "dropped": {"no size": 3, "unreadable image": 2},
        },
        "split": {"group": "patient", "num_folds": FOLDS, "counts": fold_counts()},
        "predictions": str(run / "predictions.parquet"),
        "panels": write_panels(directory, run, streams) if fold == 0 and seed == 0 else [],
    }


def history_row(epoch: int, gates: dict, rng: np.random.Generator) -> dict:
    means = {layer: {"mean": float(np.mean(values)) * (1 - 0.3 / epoch)} for layer, values in gates.items()}
    losses = {"train_loss": 0.3 / epoch + 0.02 * rng.random(), "val_loss": 0.4 / epoch + 0.03 * rng.random()}
    return {"epoch": epoch, "step": 40 * epoch, "gates": means, "val_mae": 2 + 2 / epoch} | losses


def fold_counts() -> list[dict]:
    groups = sizing.class_of(SIZES, sizing.TRI_CLASS)
    names = ("<= 5 mm", "5 to 10 mm", ">= 10 mm")
    counts = []
    for fold in range(FOLDS):
        for group, name in enumerate(names):
            polyps = int((groups[fold::FOLDS] == group).sum())
            counts.append({"fold": fold, "size_group": name, "polyps": polyps, "frames": 12 * polyps})
    return counts


def write_panels(directory: Path, run: Path, streams: list[str]) -> list[str]:
    """A grid of blobs, one row per stream."""
    names = []
    for panel in range(2):
        y, x = np.mgrid[:64, :64]
        blobs = [np.exp(-((x - 32) ** 2 + (y - 28) ** 2) / (80 * (k + 1 + panel))) for k in range(4)]
        image = np.concatenate([np.concatenate(blobs, 1)] * len(streams), 0)
        path = run / f"panel{panel}.png"
        Image.fromarray((255 * image).astype(np.uint8)).save(directory / path)
        names.append(str(path))
    return names


def save(directory: Path, records: list[dict]) -> Path:
    (directory / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return directory


def study(directory: Path, arms: dict[str, list[list[str]]], **options) -> list[dict]:
    """The records of all folds of arms with their streams, saved."""
    records = [
        make_run(directory, arm, streams, fold, **options)
        for fold in range(FOLDS)
        for arm, several in arms.items()
        for streams in several
    ]
    save(directory, records)
    return records
