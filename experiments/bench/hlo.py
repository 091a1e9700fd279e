"""What a compiled step communicates, read from the compiler, and what that predicts for more devices."""

import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

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


class Total(NamedTuple):
    """Instructions of one kind, and their bytes."""

    instructions: int
    nbytes: int


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


def summarise_collectives(collectives: Iterable[Collective], *, small: int = 2**16) -> dict[str, Total]:
    """Count and bytes by kind; reductions of less than `small` bytes apart, as ``"small all-reduce"``.

    Data parallelism has one large all-reduce a pass, of the gradient. BatchNorm's, which carry its statistics and
    the gradients of its scale and bias, are small, and so are those of gate gradients and metrics.
    """
    totals: dict[str, Total] = {}
    for item in collectives:
        kind = f"small {item.kind}" if item.kind == "all-reduce" and item.nbytes < small else item.kind
        count, size = totals.get(kind, Total(0, 0))
        totals[kind] = Total(count + 1, size + item.nbytes)
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
    if devices < 1 or bandwidth <= 0 or latency < 0:
        raise ValueError(
            "expected devices >= 1, bandwidth > 0 and latency >= 0; "
            f"found devices={devices}, bandwidth={bandwidth}, latency={latency}"
        )
    share, hops, sent, messages = (devices - 1) / devices, math.ceil(math.log2(devices)), 0.0, 0
    for item in collectives:
        rounds = 2 if item.kind == "all-reduce" else 1
        sent += item.nbytes * (rounds * share if item.kind != "collective-permute" else float(devices > 1))
        messages += rounds * hops
    return Prediction(sent, sent / bandwidth + messages * latency)
