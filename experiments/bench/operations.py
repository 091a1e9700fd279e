"""Where the time of a training step goes: its operations, as JAX's profiler times them, by the module they come from.

On a GPU the times are those of kernels. On a CPU several operations run at once, and XLA's own convolutions, and some
products, go to other threads: their time is the one until then.
"""

import itertools
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

import fsg_jax as fsg
from experiments.bench import jax_steps
from experiments.bench.comparisons import MODES
from experiments.bench.measurements import Bench
from experiments.bench.settings import Settings
from experiments.bench.timing import interleave, time_row

SUITE = "operations"
STEPS, SHOWN = 5, 20
"""Steps that are profiled, and the operations of a step that get a row."""
ALL, OTHERS = "all operations", "all others"
HOLDERS = re.compile(r" (while|call|conditional)\(")
"""Instructions whose time is that of others."""


def time_operations(bench: Bench) -> None:
    """For a plain and a routed step of every model: the operations that take most of the time."""
    for model, mode in itertools.product(bench.settings.models, ("plain", "sequential")):
        case = f"{mode} step, {bench.settings.label(model)}"
        if bench.missing(SUITE, case, [ALL]):
            seconds, counts, step = _profile(bench.settings, model, MODES[mode])
            if not seconds:
                bench.add(SUITE, case, ALL, note="not measured: the profiler of this device names no operations")
                continue
            total = sum(seconds.values())
            most = dict(sorted(seconds.items(), key=lambda item: -item[1])[:SHOWN])
            most[OTHERS] = total - sum(most.values())
            counts[OTHERS] = sum(counts.values()) - sum(counts[name] for name in most)
            for name in bench.missing(SUITE, case, most):
                bench.add(SUITE, case, name, seconds=most[name], count=counts[name], share=most[name] / total)
            bench.add(SUITE, case, ALL, seconds=total, count=sum(counts[name] for name in most), step=step)


def _profile(settings: Settings, model: str, mode: Mapping[str, Any]) -> tuple[dict[str, float], Counter[str], float]:
    """Seconds and calls a step of every operation, by its name; and the seconds of a step without the profiler."""
    step: Any = fsg.make_train_step(fsg.losses.cross_entropy, mode.get("routing", "none"))
    state, batch = jax_steps.make_state(settings, model, **mode), jax.device_put(jax_steps.make_batch(settings))
    compiled = step.lower(state, batch).compile()
    side = jax_steps.side(compiled, state, itertools.repeat((batch,)))
    times = interleave({"step": side}, settings.repeats, settings.seconds)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            side.run(STEPS)
        files = map(str, Path(folder).rglob("*.xplane.pb"))
        planes = [plane for file in files for plane in jax.profiler.ProfileData.from_file(file).planes]
    seconds, counts = defaultdict[str, float](float), Counter[str]()
    for name, nanoseconds in times_of(planes, operation_names(compiled.as_text())):
        seconds[name] += nanoseconds / 1e9 / STEPS
        counts[name] += 1
    counts = Counter({name: round(count / STEPS) for name, count in counts.items()})
    return seconds, counts, time_row(times["step"])["seconds"]


def times_of(planes: Sequence[Any], names: Mapping[str, str]) -> Iterator[tuple[str, float]]:
    """Operations and their nanoseconds, of the accelerators if there are any, else of the host.

    A kernel within a command buffer states that buffer; it has the name of its instruction, or one of a library.
    """
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    for event in (event for plane in devices or planes for line in plane.lines for event in line.events):
        if (stated := dict(event.stats).get("hlo_op")) is not None:
            known = (stated, event.name, re.sub(r"_(\d+)$", r".\1", event.name))
            if (found := next((name for name in known if name in names), None)) is not None:
                yield names[found], event.duration_ns
            elif devices:
                yield f"library {re.split('[^a-z0-9]', event.name.lower())[0]}", event.duration_ns


def operation_names(program: str) -> dict[str, str]:
    """Of each instruction of a compiled program that takes time of its own: pass, module and operation.

    ``"backward blocks_#/mlp/fc#/dot_general"`` is the name of all products of their kind, of whatever block.
    """
    found = {}
    for line in program.splitlines():
        if (match := re.match(r"\s*(?:ROOT )?%?([\w.-]+) = ", line)) and not HOLDERS.search(line):
            path = re.search(r'op_name="([^"]*)"', line)
            found[match[1]] = _named(path[1]) if path else re.sub(r"[.\d]+$", "", match[1])
    return found


def _named(path: str) -> str:
    which = "backward" if "transpose(" in path else "forward" if "jvp(" in path else "update"
    within = re.sub(r"^.*(?:jvp\([^/]*\)+|jit\(step\))/", "", path)
    within = re.sub(r"(?<=/)[\w]+\.\w+/", "", within)  # a method of the module before it
    return f"{which} {re.sub(r'[0-9]+', '#', within)}"
