"""Training steps of the library beside PyTorch's, in turns in one process: same model, weights, batch and precision."""

import importlib
from typing import Any

from experiments.bench.installed import is_installed
from experiments.bench.models_jax import (
    Program,
    device_peak_bytes,
    make_batch,
    make_state,
    step_program,
)
from experiments.bench.peak import peak_flops
from experiments.bench.record import Bench
from experiments.bench.timing import Side, Timing, interleave, paired_ratio

SUITE = "models"
PLAIN, SEQUENTIAL = "fsg_jax plain", "fsg_jax sequential"


def run(bench: Bench) -> None:
    """A plain step, then a routed one against the reference's two full passes, of every model."""
    for model in bench.settings.models:
        for two_passes in (False, True):
            _compare(bench, model, two_passes)


def _compare(bench: Bench, model: str, two_passes: bool) -> None:
    kind = "routed step" if two_passes else "plain step"
    case = f"{kind}, {bench.settings.label(model)}"
    peers = [f"PyTorch {'two passes' if two_passes else 'plain'}, {peer}" for peer in bench.settings.peers]
    ours = [PLAIN, SEQUENTIAL] if two_passes else [PLAIN]
    if not bench.missing(SUITE, case, [*ours, *peers]):
        return
    sides: list[Any] = [_program(bench, name, model) for name in ours]
    for peer, name in zip(bench.settings.peers, peers, strict=True):
        made = _peer(bench, model, name, two_passes=two_passes, compiled=peer == "compile")
        if isinstance(made, str):
            bench.add(SUITE, case, name, note=made)
        else:
            sides.append(made)
    timings = interleave(sides, bench.settings.repeats, bench.settings.seconds)
    flops = sides[0].flops / bench.settings.batch
    for side in sides:
        if side.name in bench.missing(SUITE, case, [side.name]):
            bench.add(SUITE, case, side.name, **_row(bench, side, timings, ours[-1], flops))


def _program(bench: Bench, name: str, model: str) -> Program:
    gated = name == SEQUENTIAL
    return step_program(bench.settings, name, model, gated=gated, routing="sequential" if gated else "none")


def _peer(bench: Bench, model: str, name: str, *, two_passes: bool, compiled: bool) -> Side | str:
    """The PyTorch side after its first step, or why there is none."""
    if not is_installed("torch"):
        return "not measured: PyTorch is not installed"
    steps_torch = importlib.import_module("experiments.bench.steps_torch")
    routing = "sequential" if two_passes else "none"
    variables = make_state(bench.settings, model, gated=two_passes, routing=routing).variables
    batch = make_batch(bench.settings)
    peer = steps_torch.Peer(name, bench.settings, model, variables, batch, two_passes=two_passes, compiled=compiled)
    try:
        peer.prepare()
    except Exception as error:  # torch.compile fails in many ways, all of which the table must tell
        if not compiled:
            raise
        return f"not measured: torch.compile failed with {type(error).__name__}: {str(error).splitlines()[0][:200]}"
    return peer


def _row(bench: Bench, side: Any, timings: dict[str, Timing], ours: str, flops: float) -> dict[str, Any]:
    """`ours` is the side whose speed is put over every other's; `flops` are those of a plain step, an image."""
    timing = timings[side.name]
    rate = bench.settings.batch / timing.spread.median
    row = {"images_per_second": rate, **timing.row(), **side.row()}
    if side.name.startswith("fsg_jax"):
        row["device_peak_bytes"] = device_peak_bytes()
    if "plain" in side.name:
        row["flops_per_image"] = flops
        row["share_of_peak"] = rate * flops / peak_flops(bench, bench.settings.precision)
    if side.name != ours:
        ratio = paired_ratio(timing, timings[ours])
        row |= {"fsg_jax_speed_ratio": ratio.median, "ratio_low": ratio.low, "ratio_high": ratio.high}
    return row
