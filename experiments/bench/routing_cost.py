"""What each routing mode costs, as a ratio to a plain step of the ungated model."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments.bench.models_jax import Program, step_program
from experiments.bench.record import Bench
from experiments.bench.timing import interleave, paired_ratio

SUITE = "routing"


class Mode(NamedTuple):
    """One way to train."""

    gated: bool
    routing: str
    every: int = 1


PLAIN = "plain"
MODES = {
    PLAIN: Mode(False, "none"),
    "none": Mode(True, "none"),
    "joint": Mode(True, "joint"),
    "sequential": Mode(True, "sequential"),
    "sequential, every 2": Mode(True, "sequential", 2),
    "sequential, every 4": Mode(True, "sequential", 4),
    "reference": Mode(True, "reference"),
}


def run(bench: Bench) -> None:
    """All modes of a model in turns."""
    for model in bench.settings.models:
        case = bench.settings.label(model)
        if bench.missing(SUITE, case, MODES):
            _measure(bench, model, case)


def _measure(bench: Bench, model: str, case: str) -> None:
    settings = bench.settings
    programs = [
        step_program(settings, name, model, gated=mode.gated, routing=mode.routing, every=mode.every)
        for name, mode in MODES.items()
    ]
    every = max(mode.every for mode in MODES.values())
    timings = interleave(programs, settings.repeats, settings.seconds, multiple=every)
    flops, plain = mode_flops(programs), programs[0]
    for program in programs:
        ratio = paired_ratio(timings[program.name], timings[PLAIN])
        row: dict[str, Any] = timings[program.name].row() | program.row()
        row |= {"time_ratio": ratio.median, "ratio_low": ratio.low, "ratio_high": ratio.high}
        row |= {"flops": flops[program.name], "flops_ratio": flops[program.name] / flops[PLAIN]}
        row["memory_ratio"] = program.memory["memory_bytes"] / plain.memory["memory_bytes"]
        if program.name in bench.missing(SUITE, case, MODES):
            bench.add(SUITE, case, program.name, **row)


def mode_flops(programs: Sequence[Program]) -> dict[str, float]:
    """FLOPs of a step of every mode; with a gate pass at every k-th step, their mean over k steps.

    A step without the gate pass counts as one of ``"joint"``, which has the few FLOPs of the gate gradients more.
    """
    flops = {program.name: program.flops for program in programs}
    extra = flops["sequential"] - flops["joint"]
    return flops | {name: flops["joint"] + extra / mode.every for name, mode in MODES.items() if mode.every > 1}
