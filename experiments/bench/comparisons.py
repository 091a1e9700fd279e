"""What is compared: steps of the library and of PyTorch, routing modes, input paths, ways to dispatch, seeds."""

import importlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import jax_steps
from experiments.bench.jax_steps import compiled_side, make_state, resident_side, seeds_side
from experiments.bench.measurements import Bench, Row
from experiments.bench.settings import PRECISIONS, Settings
from experiments.bench.timing import Side, Times, interleave, quartiles, time_row
from fsg_jax.data.batches import shuffled
from fsg_jax.data.loader import make_loader
from fsg_jax.data.prefetch import Prefetch
from fsg_jax.data.resident import chunk_rows, put_dataset

Sides = Mapping[str, Side]
AllTimes = Mapping[str, Times]
Makers = dict[str, Callable[[], Side | str]]
"""By name, what makes a side or says why it is not measured."""


def compare(
    bench: Bench,
    suite: str,
    case: str,
    makers: Makers,
    figures: Callable[[str, Sides, AllTimes], Row],
    *,
    beside: Makers | None = None,
    multiple: int = 1,
) -> None:
    """Measures the sides of a case in turns unless all have their rows, and adds the rows that are missing.

    Args:
      bench: gets the rows.
      suite: of the rows.
      case: of the rows.
      makers: of the sides.
      figures: the values of a side's row, of its name, all sides and all times.
      beside: makers of sides that are measured along and get no row.
      multiple: as in `interleave`.
    """
    if not bench.missing(suite, case, makers):
        return
    made = {name: make() for name, make in (makers | (beside or {})).items()}
    sides = {name: side for name, side in made.items() if isinstance(side, Side)}
    times = interleave(sides, bench.settings.repeats, bench.settings.seconds, multiple=multiple)
    for name in bench.missing(suite, case, makers):
        bench.add(suite, case, name, **(figures(name, sides, times) if name in sides else {"note": made[name]}))


def measure_peak(bench: Bench) -> None:
    """One row a precision: what the device's own large matrix product reaches, the yardstick of every throughput."""
    for precision in PRECISIONS:
        peak_flops(bench, precision)


def peak_flops(bench: Bench, precision: str) -> float:
    """FLOP/s of the matrix product in `precision`, measured if it is not among the rows.

    A float32 product is what JAX gives by default, which may be lower precision inside (TF32).
    """
    size = bench.settings.matmul
    case = f"{size} x {size} matrix product"

    def make() -> Side:
        keys = jax.random.split(jax.random.key(0))
        a, b = (jax.random.normal(key, (size, size), jnp.dtype(precision)) for key in keys)
        return Side(partial(jax.jit(jnp.matmul), a, b))

    def figures(name: str, sides: Sides, times: AllTimes) -> Row:
        seconds = time_row(times[name])["seconds"]
        return {"seconds": seconds, "flops_per_second": 2 * size**3 / seconds}

    compare(bench, "peak", case, {precision: make}, figures)
    return next(float(row["flops_per_second"]) for row in bench.of("peak", case) if row["side"] == precision)


PLAIN, SEQUENTIAL = "fsg_jax plain", "fsg_jax sequential"


def compare_with_torch(bench: Bench) -> None:
    """A plain step, then a routed one against the reference's two full passes, of every model, beside PyTorch's."""
    settings = bench.settings
    for model, two_passes in itertools.product(settings.models, (False, True)):
        makers: Makers = {PLAIN: partial(compiled_side, settings, model)}
        if two_passes:
            makers[SEQUENTIAL] = partial(compiled_side, settings, model, gated=True, routing="sequential")
        for peer in settings.peers:
            name = f"PyTorch {'two passes' if two_passes else 'plain'}, {peer}"
            makers[name] = partial(_torch_side, settings, model, two_passes, peer == "compile")
        case = f"{'routed' if two_passes else 'plain'} step, {settings.label(model)}"
        compare(bench, "models", case, makers, partial(_beside_torch, bench))


def _torch_side(settings: Settings, model: str, two_passes: bool, compiled: bool) -> Side | str:
    for package in ("torch", "timm") if model.startswith("efficientnet") else ("torch",):
        if find_spec(package) is None:
            return f"not measured: {package} is not installed"
    make = importlib.import_module("experiments.bench.torch_steps").torch_side
    state = make_state(settings, model, gated=two_passes, routing="sequential" if two_passes else "none")
    batch = jax_steps.make_batch(settings)
    try:
        return make(settings, model, state.variables, batch, two_passes=two_passes, compiled=compiled)
    except Exception as error:  # torch.compile fails in many ways, all of which the table must tell
        if not compiled:
            raise
        return f"not measured: torch.compile failed with {type(error).__name__}: {str(error).splitlines()[0][:200]}"


def _beside_torch(bench: Bench, name: str, sides: Sides, times: AllTimes) -> Row:
    """The library's last side is the one whose speed is put over every other's."""
    settings, ours = bench.settings, SEQUENTIAL if SEQUENTIAL in sides else PLAIN
    row = time_row(times[name]) | sides[name].about
    rate = row["images_per_second"] = settings.batch / row["seconds"]
    if name.startswith("fsg_jax"):
        row["device_peak_bytes"] = jax_steps.device_peak_bytes()
    if "plain" in name:
        row["flops_per_image"] = sides[PLAIN].flops / settings.batch
        row["share_of_peak"] = rate * row["flops_per_image"] / peak_flops(bench, settings.precision)
    if name != ours:
        row |= quartiles(times[name] / times[ours], "fsg_jax_speed_ratio", "ratio_low", "ratio_high")
    return row


MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "none": {"gated": True},
    "joint": {"gated": True, "routing": "joint"},
    "sequential": {"gated": True, "routing": "sequential"},
    "sequential, every 2": {"gated": True, "routing": "sequential", "every": 2},
    "sequential, every 4": {"gated": True, "routing": "sequential", "every": 4},
    "reference": {"gated": True, "routing": "reference"},
}


def compare_routing(bench: Bench) -> None:
    """What each routing mode costs, as a ratio to a plain step of the ungated model."""
    for model in bench.settings.models:
        makers: Makers = {name: partial(compiled_side, bench.settings, model, **mode) for name, mode in MODES.items()}
        compare(bench, "routing", bench.settings.label(model), makers, _over_plain, multiple=4)


def _over_plain(name: str, sides: Sides, times: AllTimes) -> Row:
    """With a gate pass at every k-th step, FLOPs are the mean over k steps.

    A step without the gate pass counts as one of ``"joint"``, which has the few FLOPs of the gate gradients more.
    """
    side, plain, flops = sides[name], sides["plain"], sides[name].flops
    if every := MODES[name].get("every"):
        flops = sides["joint"].flops + (sides["sequential"].flops - sides["joint"].flops) / every
    row = time_row(times[name]) | side.about
    row |= quartiles(times[name] / times["plain"], "time_ratio", "ratio_low", "ratio_high")
    row |= {"flops": flops, "flops_ratio": flops / plain.flops}
    return row | {"memory_ratio": side.about["memory_bytes"] / plain.about["memory_bytes"]}


STEP, GRAIN, RESIDENT = "step on one batch", "Grain", "device-resident"


def compare_inputs(bench: Bench) -> None:
    """How fast the input paths are, and how much of a training step they make it wait.

    For every model the step by itself, the step fed by each path, and each path by itself are measured.
    """
    settings, step = bench.settings, jax.jit(jax_steps.make_step(), donate_argnums=0)

    def alone(batches: Iterator[Any]) -> Side:
        return Side(partial(next, batches))

    def fed(model: str, batches: Iterator[Any]) -> Side:
        return jax_steps.side(step, make_state(settings, model), ((batch,) for batch in batches))

    def grain(make: Callable[[Iterator[Any]], Side]) -> Side | str:
        return make(grain_batches(settings)) if find_spec("grain") else "not measured: Grain is not installed"

    beside: Makers = {
        f"{RESIDENT} alone": lambda: alone(resident_batches(settings)),
        f"{GRAIN} alone": partial(grain, alone),
    }
    for model in settings.models:
        makers: Makers = {
            STEP: partial(fed, model, itertools.repeat(next(resident_batches(settings)))),
            RESIDENT: partial(resident_side, settings, model, "loop", batch=settings.batch, steps=1),
            GRAIN: partial(grain, partial(fed, model)),
        }
        compare(bench, "input", settings.label(model), makers, partial(_waiting, settings.batch), beside=beside)


def _waiting(batch: int, name: str, sides: Sides, times: AllTimes) -> Row:
    row = time_row(times[name])
    row["images_per_second"] = batch / row["seconds"]
    if name != STEP:
        row["path_images_per_second"] = batch / time_row(times[f"{name} alone"])["seconds"]
        row["waiting"] = max(0.0, 1 - 1 / float(np.median(times[name] / times[STEP])))
    return row


def grain_batches(settings: Settings) -> Iterator[Any]:
    """Batches of the Grain pipeline, put on the device two ahead."""
    return Prefetch(iter(make_loader(jax_steps.make_dataset(settings), settings.batch, seed=0)), jax.device_put)


def resident_batches(settings: Settings) -> Iterator[Any]:
    """Batches gathered on the device from resident data, by themselves."""
    data, order = put_dataset(jax_steps.make_dataset(settings)), shuffled(settings.examples, settings.batch, 0)
    gather = jax.jit(lambda data, rows: jax.tree.map(lambda value: value[rows], data))
    return (gather(data, chunk_rows(order, step, 1)[0]) for step in itertools.count())


SEED_MODES = {"one after another": None, "vmap": "vmap", "lax.map": "map"}
DISPATCHES = {"python loop": "loop", "lax.scan": "scan"}


def compare_seeds(bench: Bench) -> None:
    """A routed step of every model for every number of seeds: which way takes least time a seed and step."""
    settings = bench.settings
    for model, count in itertools.product(settings.models, settings.seeds):
        case = f"{count} seeds, sequential, {settings.label(model)}"
        makers: Makers = {name: partial(seeds_side, settings, model, count, mode) for name, mode in SEED_MODES.items()}
        compare(bench, "seeds", case, makers, _over_first)


def compare_dispatch(bench: Bench) -> None:
    """Many plain steps in one program or one program a step, at the batch of the settings and at an eighth of it."""
    settings = bench.settings
    for model, batch in itertools.product(settings.models, sorted({settings.batch, max(1, settings.batch // 8)})):
        case = f"{settings.steps} steps, {settings.label(model, batch)}"
        sized = partial(resident_side, settings, model, batch=batch, steps=settings.steps)
        compare(bench, "dispatch", case, {name: partial(sized, how) for name, how in DISPATCHES.items()}, _over_first)


def _over_first(name: str, sides: Sides, times: AllTimes) -> Row:
    fastest = min(times, key=lambda name: time_row(times[name])["seconds"])
    ratio = float(np.median(times[name] / times[next(iter(times))]))
    return {**time_row(times[name]), "time_ratio": ratio, "fastest": name == fastest}
