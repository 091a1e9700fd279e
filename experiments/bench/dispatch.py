"""Many steps in one program (`lax.scan`) or one program a step, dispatched without waiting."""

from experiments.bench.record import Bench
from experiments.bench.resident_steps import resident_side
from experiments.bench.seeds import fastest
from experiments.bench.timing import Timing, interleave, paired_ratio

SUITE = "dispatch"
LOOP, SCAN = "python loop", "lax.scan"
DISPATCH = {LOOP: "loop", SCAN: "scan"}


def run(bench: Bench) -> None:
    """Plain steps on resident data at the batch of the settings and at an eighth of it."""
    for model in bench.settings.models:
        for batch in sorted({bench.settings.batch, max(1, bench.settings.batch // 8)}):
            case = f"{bench.settings.steps} steps, {bench.settings.label(model, batch)}"
            if bench.missing(SUITE, case, DISPATCH):
                _measure(bench, model, batch, case)


def _measure(bench: Bench, model: str, batch: int, case: str) -> None:
    settings, steps = bench.settings, bench.settings.steps
    sides = [resident_side(settings, name, model, how, batch, steps) for name, how in DISPATCH.items()]
    timings = interleave(sides, settings.repeats, settings.seconds)
    winner = fastest(timings)
    for name in bench.missing(SUITE, case, DISPATCH):
        each = Timing(tuple(t / steps for t in timings[name].samples), timings[name].steps * steps)
        ratio = paired_ratio(timings[name], timings[LOOP])
        bench.add(SUITE, case, name, **each.row(), time_ratio=ratio.median, fastest=name == winner)
