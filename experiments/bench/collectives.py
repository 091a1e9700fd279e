"""What the data-parallel step communicates, read from the compiler, and what that predicts for more devices."""

import math
import multiprocessing
import os
import re
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding, PartitionSpec

import fsg_jax as fsg
from experiments.bench.jax_steps import make_batch, make_state
from experiments.bench.measurements import Bench, Row
from experiments.bench.settings import Settings
from experiments.errors import UserError
from fsg_jax._checks import check_integer, check_nonnegative, check_positive
from fsg_jax.training.sharding import AXES, make_mesh, state_shardings

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_COLLECTIVE = re.compile(rf"= (.+?) ({'|'.join(KINDS)})(-start)?\((.*)")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")


class Collective(NamedTuple):
    """One collective instruction of a compiled program."""

    kind: str
    """One of `KINDS`."""
    nbytes: int
    """Of the whole buffer: what is reduced, or the result of a gather or exchange."""
    devices: int
    """That take part together."""
    name: str
    """The operation of the model that it comes from."""


class Prediction(NamedTuple):
    """Communication of one step: bytes that each device sends, and seconds."""

    bytes_per_device: float
    seconds: float


def list_collectives(compiled: Any) -> list[Collective]:
    """The collectives of a compiled function, in the order of its text. One inside a loop is listed once.

    Args:
      compiled: ``jax.jit(f).lower(...).compile()``, or the text of the program.
    """
    text = compiled if isinstance(compiled, str) else compiled.as_text()
    partitions = re.search(r"num_partitions=(\d+)", text)
    everything = int(partitions.group(1)) if partitions else 1
    matches = (_COLLECTIVE.search(line) for line in text.splitlines())
    return [_collective(m, everything) for m in matches if m]


def _collective(match: re.Match[str], everything: int) -> Collective:
    types, kind, started, rest = match.groups()
    sizes = [_nbytes(bits, name, shape) for name, bits, shape in _ARRAY.findall(types)]
    if started and kind in ("all-gather", "reduce-scatter", "collective-permute"):
        sizes = sizes[1:2] if kind == "collective-permute" else sizes[len(sizes) // 2 :]
    devices = _devices(rest, everything)
    name = re.search(r'op_name="([^"]*)"', rest)
    scale = devices if kind == "reduce-scatter" else 1
    return Collective(kind, scale * sum(sizes), devices, name.group(1) if name else "")


def _nbytes(bits: str, name: str, shape: str) -> int:
    count = math.prod(int(size) for size in shape.split(",") if size)
    return count if name == "pred" else math.ceil(count * int(bits) / 8)


def _devices(attributes: str, everything: int) -> int:
    """Size of a replica group, in any of the three notations of HLO."""
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return found.group(1).count(",") + 1
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(found.group(1))
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found.group(1)))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found.group(2))
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return everything


def summarise_collectives(collectives: Iterable[Collective], *, small: int = 2**16) -> dict[str, Row]:
    """``{"count": ..., "bytes": ...}`` by kind; reductions below `small` bytes apart, as ``"small all-reduce"``.

    Data parallelism has one large all-reduce a pass, of the gradient. BatchNorm's, which carry its statistics and
    the gradients of its scale and bias, are small, and so are those of gate gradients and metrics.
    """
    totals: dict[str, Row] = {}
    for item in collectives:
        kind = f"small {item.kind}" if item.kind == "all-reduce" and item.nbytes < small else item.kind
        total = totals.setdefault(kind, {"count": 0, "bytes": 0})
        total["count"] += 1
        total["bytes"] += item.nbytes
    return totals


def predict_communication(
    collectives: Iterable[Collective], devices: int, bandwidth: float, latency: float = 0.0
) -> Prediction:
    """Ring collectives over n devices: an all-reduce of b bytes sends ``2 (n - 1) / n b`` from each device.

    All-gather, reduce-scatter and all-to-all send ``(n - 1) / n b``, a permute b. The time is bytes over bandwidth,
    plus ``2 ceil(log2 n)`` latencies for an all-reduce, as in a tree, and half for the others; nothing overlaps with
    computation. The buffers are those of the given program: gradients do not grow with devices, activations (the
    partners of mixup) do where the batch does. Source: Patarasuk and Yuan 2009, section 3.

    Args:
      collectives: from `list_collectives`; each is taken to be over all n devices.
      devices: n, at least 1.
      bandwidth: bytes a second that a device sends.
      latency: seconds a message takes besides.

    Raises:
      ValueError: an argument out of range.
    """
    check_integer("devices", devices, 1)
    check_positive(bandwidth=bandwidth)
    check_nonnegative(latency=latency)
    share, hops, sent, messages = (devices - 1) / devices, math.ceil(math.log2(devices)), 0.0, 0
    for item in collectives:
        rounds = 2 if item.kind == "all-reduce" else 1
        sent += item.nbytes * (rounds * share if item.kind != "collective-permute" else float(devices > 1))
        messages += rounds * hops
    return Prediction(sent, sent / bandwidth + messages * latency)


SUITE = "collectives"
COMPILED = "compiled"
"""Side of the row that is written when all others of its case are there; no table shows it."""
VIRTUAL = 8
PREDICTED = (8, 64, 512)
LINKS = {"450 GB/s": 450e9, "50 GB/s": 50e9}
"""Bytes a second that a device sends: NVLink within a host, 400 Gbit/s between hosts; datasheet figures."""
LATENCY = 5e-6


def count_collectives(bench: Bench) -> None:
    """Rows by kind of collective and by number of devices, for a plain and a routed step of every model.

    Raises:
      UserError: the process that compiles a step failed.
    """
    whole_rows = -(-bench.settings.batch // VIRTUAL) * VIRTUAL
    settings = replace(bench.settings, batch=whole_rows)
    for model in settings.models:
        for routing, step in {"none": "plain", "sequential": "sequential"}.items():
            case = f"{step} step, {settings.label(model)}"
            if bench.missing(SUITE, case, [COMPILED]):
                rows = compile_on_virtual_devices(settings, model, routing) | {COMPILED: {"devices": VIRTUAL}}
                for side in bench.missing(SUITE, case, rows):
                    bench.add(SUITE, case, side, **rows[side])


def compile_on_virtual_devices(settings: Settings, model: str, routing: str) -> dict[str, Row]:
    """The result of `describe_step` in a process of its own, because JAX fixes the number of devices when it starts.

    Raises:
      UserError: the process failed.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        try:
            return process.submit(describe_step, settings, model, routing).result()
        except Exception as error:
            raise UserError(f"compiling {model} for {VIRTUAL} devices failed: {error}") from error


def describe_step(settings: Settings, model: str, routing: str) -> dict[str, Row]:
    """Rows by side of a training step over virtual CPU devices, the global batch split; it is compiled, not run."""
    jax.config.update("jax_platforms", "cpu")
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={VIRTUAL}"
    mesh = make_mesh()
    state = jax.eval_shape(lambda: make_state(settings, model, gated=routing != "none", routing=routing))
    state = jax.tree.map(_placed, state, state_shardings(state, mesh))
    rows = NamedSharding(mesh, PartitionSpec(AXES))
    batch = {name: _placed(value, rows) for name, value in make_batch(settings).items()}
    step: Any = fsg.make_train_step(fsg.losses.cross_entropy, routing)
    found = list_collectives(step.lower(state, batch).compile())
    made = summarise_collectives(found)
    for devices in PREDICTED:
        links = {link: predict_communication(found, devices, speed, LATENCY) for link, speed in LINKS.items()}
        sent = {"bytes": links["50 GB/s"].bytes_per_device}
        made[f"sent by each of {devices} devices"] = sent | {f"seconds at {k}": p.seconds for k, p in links.items()}
    return made


def _placed(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
