"""Several seeds in one program or one after another: which takes least time a seed and step."""

from experiments.bench.record import Bench
from experiments.bench.resident_steps import one_after_another, seed_side
from experiments.bench.timing import Timing, interleave, paired_ratio

SUITE = "seeds"
APART = "one after another"
MODES = {APART: None, "vmap": "vmap", "lax.map": "map"}


def run(bench: Bench) -> None:
    """A routed training step of every model for every number of seeds, the ways in turns."""
    for model in bench.settings.models:
        for count in bench.settings.seeds:
            case = f"{count} seeds, sequential, {bench.settings.label(model)}"
            if bench.missing(SUITE, case, MODES):
                _measure(bench, model, count, case)


def _measure(bench: Bench, model: str, count: int, case: str) -> None:
    settings = bench.settings
    sides = [
        one_after_another(settings, name, model, count)
        if mode is None
        else seed_side(settings, name, model, count, mode)
        for name, mode in MODES.items()
    ]
    timings = interleave(sides, settings.repeats, settings.seconds)
    winner = fastest(timings)
    for name in bench.missing(SUITE, case, MODES):
        each = Timing(tuple(t / count for t in timings[name].samples), timings[name].steps)
        ratio = paired_ratio(timings[name], timings[APART])
        bench.add(SUITE, case, name, **each.row(), time_ratio=ratio.median, fastest=name == winner)


def fastest(timings: dict[str, Timing]) -> str:
    """Name of the side with the smallest median."""
    return min(timings, key=lambda name: timings[name].spread.median)
