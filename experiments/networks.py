"""Trained image classifiers side by side, and statistics over their seeds: for `experiments.fooling` and `transfer`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from experiments import pretrained
from experiments.config import Experiment, change, flatten
from experiments.errors import UserError
from experiments.report.text_table import percent
from experiments.run_folder import EXECUTION
from experiments.trained import Restored, Run, find_runs, restore, run_around
from fsg_jax._checks import expect
from fsg_jax.data.extras import import_extra


class Network(NamedTuple):
    """The network of a run."""

    name: str
    arm: str
    """Experiment and arm: networks of one arm differ in their seed alone."""
    seed: int
    experiment: Experiment
    restored: Restored

    @property
    def model(self) -> nn.Module:
        """With the true gradient of its loss, also where it was trained with another (``branch_gradient="mean"``)."""
        model = self.restored.model
        return model.clone(branch_gradient="sum") if hasattr(model, "branch_gradient") else model


def read_networks(paths: Sequence[Path], data_path: Path | None) -> list[Network]:
    """The networks of runs, of checkpoints of runs, and of all runs below other folders, in their order.

    Args:
      paths: folders.
      data_path: of CIFAR-100, where it is no longer where the runs found it.

    Raises:
      UserError: nothing is there, or it is no classification of images.
      ValueError: a run is damaged or there twice, or runs of one arm differ in more than their seed.
    """
    networks: list[Network] = []
    configs: dict[str, dict[str, Any]] = {}
    for path in paths:
        around = run_around(path) if path.is_dir() else None
        found: list[tuple[Run, Path | None]] = [around] if around else [(run, None) for run in find_runs(path)]
        if not found:
            raise UserError(f"{path}: expected a run, a checkpoint of a run, or a folder of runs, found none")
        for run, checkpoint in found:
            network = _network(run, checkpoint, data_path)
            expect(network.name not in configs, "RUN", "every network once", f"{network.name} twice")
            configs[network.name] = _computed(run.config)
            first = next(one.name for one in [*networks, network] if one.arm == network.arm)
            differ = sorted(k for k, v in configs[network.name].items() if configs[first].get(k) != v)
            expect(not differ, network.name, f"the configuration of {first}, save the seed", f"other {differ}")
            networks.append(network)
    if not networks:
        raise UserError("RUN: expected one or more, found none")
    return networks


def _network(run: Run, checkpoint: Path | None, data_path: Path | None) -> Network:
    restored = restore(run, checkpoint)
    experiment = restored.experiment
    if not isinstance(experiment, Experiment):
        raise UserError(f"{run.path}: expected a classification of images, found {run.config['name']}")
    if experiment.model.pretrained is not None:
        pretrained.pin(experiment)  # the weights that say how images are normalised are still those
    if data_path is not None:
        experiment = change(experiment, {"data.path": data_path})
    return Network(run.name, run.group, run.config["seed"], experiment, restored)


def _computed(config: Mapping[str, Any]) -> dict[str, Any]:
    """What tells the networks of one arm apart from others."""
    return {k: v for k, v in flatten(dict(config)).items() if k not in EXECUTION | {"seed", "data.path"}}


def wilson(count: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share, after Wilson 1927."""
    found = import_extra("scipy.stats", "experiments").binomtest(int(count), int(total)).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def mean_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (ddof=1), None of one value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def over_seeds(rows: Iterable[Mapping[str, Any]], keys: Sequence[str], values: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each combination of `keys`: the number of ``seeds``, and ``VALUE_mean``, ``VALUE_std`` of `values`."""
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    found = []
    for names, members in groups.items():
        cells = dict(zip(keys, names, strict=True)) | {"seeds": len(members)}
        for value in values:
            cells[f"{value}_mean"], cells[f"{value}_std"] = mean_std([row[value] for row in members])
        found.append(cells)
    return found


def cell(rows: Sequence[Mapping[str, Any]], value: str, form: Callable[[float], str] = percent) -> str:
    """Of the rows of one arm: ``mean ± deviation`` over seeds, or of a single one the value and its interval."""
    mean, std = mean_std([row[value] for row in rows])
    if std is not None:
        return f"{form(mean)} ± {form(std)}"
    return f"{form(mean)} [{form(rows[0][f'{value}_low'])}, {form(rows[0][f'{value}_high'])}]"
