"""How fast the input pipelines are, and how much of a training step they make it wait."""

import itertools
from collections.abc import Iterator
from typing import Any

import jax

from experiments.bench.installed import is_installed
from experiments.bench.models_jax import make_state
from experiments.bench.record import Bench
from experiments.bench.resident_steps import make_dataset, make_step
from experiments.bench.settings import Settings
from experiments.bench.timing import interleave, paired_ratio
from fsg_jax.data.batches import shuffled
from fsg_jax.data.loader import make_loader
from fsg_jax.data.prefetch import Prefetch
from fsg_jax.data.resident import chunk_rows, make_resident_steps, put_dataset

SUITE = "input"
STEP, GRAIN, RESIDENT = "step on one batch", "Grain", "device-resident"


def run(bench: Bench) -> None:
    """For every model: the step by itself, the step fed by each path, and each path by itself."""
    for model in bench.settings.models:
        case = bench.settings.label(model)
        if bench.missing(SUITE, case, [STEP, GRAIN, RESIDENT]):
            _measure(bench, model, case)


def _measure(bench: Bench, model: str, case: str) -> None:
    settings = bench.settings
    paths: dict[str, Any] = {RESIDENT: resident_batches}
    if is_installed("grain"):
        paths[GRAIN] = grain_batches
    else:
        bench.add(SUITE, case, GRAIN, note="not measured: Grain is not installed")
    step = jax.jit(make_step(), donate_argnums=0)
    alone = [Reading(f"{name} alone", path(settings)) for name, path in paths.items()]
    fed = [Fed(STEP, step, settings, model, itertools.repeat(next(resident_batches(settings))))]
    fed += [Fed(name, step, settings, model, path(settings)) for name, path in paths.items() if name != RESIDENT]
    timings = interleave([*alone, *fed, ResidentFed(RESIDENT, settings, model)], settings.repeats, settings.seconds)
    for name in bench.missing(SUITE, case, [STEP, *paths]):
        row = {"images_per_second": settings.batch / timings[name].spread.median, **timings[name].row()}
        if name != STEP:
            row["path_images_per_second"] = settings.batch / timings[f"{name} alone"].spread.median
            row["waiting"] = max(0.0, 1 - 1 / paired_ratio(timings[name], timings[STEP]).median)
        bench.add(SUITE, case, name, **row)


def grain_batches(settings: Settings) -> Iterator[Any]:
    """Batches of the Grain pipeline, put on the device two ahead."""
    return Prefetch(iter(make_loader(make_dataset(settings), settings.batch, seed=0)), jax.device_put)


def resident_batches(settings: Settings) -> Iterator[Any]:
    """Batches gathered on the device from resident data, by themselves."""
    data, order = put_dataset(make_dataset(settings)), shuffled(settings.examples, settings.batch, 0)
    gather = jax.jit(lambda data, rows: jax.tree.map(lambda value: value[rows], data))
    for step in itertools.count():
        yield gather(data, chunk_rows(order, step, 1)[0])


class Reading:
    """A side: batches are read and nothing is done with them."""

    def __init__(self, name: str, batches: Iterator[Any]) -> None:
        self.name, self._batches = name, batches

    def run(self, steps: int) -> None:
        """Reads `steps` batches, all of which are then on the device."""
        jax.block_until_ready([next(self._batches) for _ in range(steps)])


class Fed:
    """A side: training steps on the batches of an iterator."""

    def __init__(self, name: str, step: Any, settings: Settings, model: str, batches: Iterator[Any]) -> None:
        self.name, self._step, self._batches = name, step, batches
        self._state = make_state(settings, model, gated=False, routing="none")

    def run(self, steps: int) -> None:
        """Takes `steps` steps."""
        for _ in range(steps):
            self._state, _ = self._step(self._state, next(self._batches))
        jax.block_until_ready(self._state)


class ResidentFed:
    """A side: training steps that gather their rows from resident data, one program a step."""

    def __init__(self, name: str, settings: Settings, model: str) -> None:
        self.name, self._next = name, 0
        self._order = shuffled(settings.examples, settings.batch, 0)
        self._state = make_state(settings, model, gated=False, routing="none")
        self._data, self._steps = put_dataset(make_dataset(settings)), make_resident_steps(make_step(), "loop")

    def run(self, steps: int) -> None:
        """Takes `steps` steps."""
        for _ in range(steps):
            self._state, _ = self._steps(self._state, self._data, chunk_rows(self._order, self._next, 1))
            self._next += 1
        jax.block_until_ready(self._state)
