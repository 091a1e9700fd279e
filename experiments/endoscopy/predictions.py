"""Predictions of single frames: computed, summarised, and written beside the record of a run."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from experiments.endoscopy.cohort import Cohort
from experiments.errors import NotFiniteError
from fsg_jax._files import replacing
from fsg_jax.endoscopy import sizing
from fsg_jax.endoscopy.sizing.targets import SizeTarget
from fsg_jax.typing import Batch

FILE = "predictions.parquet"
KEYS = ("dataset", "polyp_id", "video_id", "patient_id", "frame_id", "image_path", "synthetic", "size_censored")
BOX = ("xmin", "ymin", "xmax", "ymax")

Predictor = Callable[[Batch], dict[str, jax.Array]]
"""Columns of predictions and the loss, a value a frame."""


def predict(predictor: Predictor, batches: Iterable[dict[str, np.ndarray]], table: pa.Table) -> pa.Table:
    """One row a frame: its keys, box and size, the predictions, and the loss.

    Args:
      predictor: of a trained state.
      batches: of frames, padded, with ``valid``.
      table: the rows of the index, in the order of the frames.

    Raises:
      NotFiniteError: a prediction or loss is NaN or Inf.
    """
    return keyed(table, collect(predictor, batches))


def collect(predictor: Callable[[Batch], Any], batches: Iterable[dict[str, np.ndarray]]) -> Any:
    """What `predictor` gives for all batches, leaf by leaf, without the rows of padding."""
    parts = []
    for batch in batches:
        valid = batch.pop("valid")
        parts.append(jax.tree.map(lambda leaf, valid=valid: np.asarray(leaf)[valid], jax.device_get(predictor(batch))))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def keyed(table: pa.Table, found: dict[str, np.ndarray], may_lack: Mapping[str, np.ndarray] | None = None) -> pa.Table:
    """The keys, box and size of every row beside what was found.

    Args:
      table: the rows of the index.
      found: columns.
      may_lack: by column, the rows that may be NaN.

    Raises:
      NotFiniteError: another value is NaN or Inf.
    """
    lack = may_lack or {}
    if bad := sorted(name for name, values in found.items() if not (np.isfinite(values) | lack.get(name, False)).all()):
        raise NotFiniteError(f"predictions: {', '.join(bad)} are NaN or Inf; the last good checkpoint is kept")
    columns = {name: table.column(name) for name in (*KEYS, *BOX, "width", "height", "size_mm")}
    return pa.table(columns | found)


def summarise(table: pa.Table, target: SizeTarget) -> dict[str, float]:
    """The mean loss, and metrics of frames and (``polyp_``) of polyps, except those of classes that do not occur."""
    truth, polyp = _floats(table, "size_mm"), polyp_names(table)
    if target.scheme is None:
        predicted = _floats(table, "predicted_mm")
        frames = sizing.regression_metrics(truth, predicted)
        found = sizing.aggregate_sizes(polyp, truth, predicted)
        polyps = sizing.regression_metrics(found.size_mm, found.predicted_mm)
    else:
        columns = {name: _floats(table, name) for name in target.scheme.columns}
        _, sizes, _, means = sizing.aggregate_probabilities(polyp, truth, columns)
        frames, polyps = _classes(truth, columns, target.scheme), _classes(sizes, means, target.scheme)
    loss = float(table.column("loss").to_numpy().mean())
    return {"loss": loss} | frames | {f"polyp_{name}": value for name, value in polyps.items()}


def with_baselines(table: pa.Table, cohort: Cohort) -> pa.Table:
    """`table` with the sizes by two predictors without a network, fitted on the training frames.

    ``baseline_mean_mm`` is the mean size of the training polyps, ``baseline_box_area_mm`` a regression of log size on
    the log of the box's share of the frame.
    """
    train = cohort.table.take(np.concatenate(cohort.polyps))
    sizes, names = _floats(train, "size_mm"), polyp_names(train)
    predictors = {"mean": sizing.fit_mean(sizes, names), "box_area": sizing.fit_box_area(sizes, _areas(train), names)}
    for name, predictor in predictors.items():
        table = table.append_column(f"baseline_{name}_mm", pa.array(predictor(_areas(table)), pa.float64()))
    return table


def _areas(table: pa.Table) -> np.ndarray:
    box = np.stack([table.column(name).to_numpy() for name in BOX], -1)
    return sizing.relative_area(box, table.column("width").to_numpy(), table.column("height").to_numpy())


def polyp_names(table: pa.Table) -> list[str]:
    """A name that is unique over datasets, for every row."""
    pairs = zip(table.column("dataset").to_pylist(), table.column("polyp_id").to_pylist(), strict=True)
    return [f"{dataset}/{polyp}" for dataset, polyp in pairs]


def write_predictions(folder: Path, table: pa.Table, fold: int) -> None:
    """Writes `FILE` into the folder of a run, whole or not at all."""
    table = table.append_column("fold", pa.array([fold] * table.num_rows, pa.int32()))
    with replacing(folder / FILE) as temporary:
        pq.write_table(table, temporary, write_page_checksum=True)


def _floats(table: pa.Table, name: str) -> np.ndarray:
    return table.column(name).to_numpy().astype(np.float64)


def _classes(truth: np.ndarray, columns: dict[str, Any], scheme: Any) -> dict[str, float]:
    predicted = np.stack(list(columns.values())).argmax(0)
    metrics = sizing.classification_metrics(np.asarray(sizing.class_of(truth, scheme)), predicted, scheme)
    return {name: value for name, value in metrics.items() if np.isfinite(value)}
