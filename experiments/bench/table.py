"""The measurements as Markdown tables."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

Row = dict[str, Any]
Column = tuple[str, Callable[[Row], str]]

UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def number(key: str, form: str = "{:.3g}", scale: float = 1.0) -> Callable[[Row], str]:
    """A column of one number; empty where there is none."""
    return lambda row: "" if row.get(key) is None else form.format(row[key] * scale)


def spread(key: str, low: str, high: str, form: str, scale: float = 1.0) -> Callable[[Row], str]:
    """A median with its quartiles."""

    def cell(row: Row) -> str:
        if row.get(key) is None:
            return ""
        middle, *ends = (form.format(row[k] * scale) for k in (key, low, high))
        return f"{middle} ({ends[0]} to {ends[1]})"

    return cell


def prefixed(key: str, unit: str = "") -> Callable[[Row], str]:
    """A large number with a decimal prefix."""

    def cell(row: Row) -> str:
        value = row.get(key)
        if value is None:
            return ""
        scale, letter = next(((s, p) for s, p in UNITS if value >= s), (1.0, ""))
        return f"{value / scale:.3g} {letter}{unit}".strip()

    return cell


MILLISECONDS = ("ms a step (quartiles)", spread("seconds", "seconds_low", "seconds_high", "{:.4g}", 1e3))
COMPILE = ("compile s", number("compile_seconds", "{:.1f}"))
MEMORY = ("memory", prefixed("memory_bytes", "B"))
RATIO = ("time ratio", number("time_ratio", "{:.2f}"))
FASTEST = ("fastest", lambda row: "yes" if row.get("fastest") else "")
NOTE = ("", lambda row: row.get("note", ""))

OPERATIONS = ("forward", "input gradient", "weight gradient")
STEPS = ("plain step", "sequential step", "two full passes")

COLUMNS: dict[str, Sequence[Column]] = {
    "peak": [("ms", number("seconds", "{:.4g}", 1e3)), ("FLOP/s", prefixed("flops_per_second"))],
    "models": [
        ("images/s", number("images_per_second", "{:,.0f}")),
        MILLISECONDS,
        ("fsg_jax is faster by", spread("fsg_jax_speed_ratio", "ratio_low", "ratio_high", "{:.2f}")),
        ("share of peak", number("share_of_peak", "{:.1%}")),
        COMPILE,
        MEMORY,
        ("first loss", number("first_loss", "{:.4f}")),
        NOTE,
    ],
    "routing": [
        MILLISECONDS,
        ("time ratio", spread("time_ratio", "ratio_low", "ratio_high", "{:.2f}")),
        ("FLOP ratio", number("flops_ratio", "{:.2f}")),
        ("memory ratio", number("memory_ratio", "{:.2f}")),
        ("temporaries", prefixed("temporary_bytes", "B")),
        COMPILE,
    ],
    "input": [
        ("images/s", number("images_per_second", "{:,.0f}")),
        ("path alone, images/s", number("path_images_per_second", "{:,.0f}")),
        ("waiting", number("waiting", "{:.1%}")),
        NOTE,
    ],
    "seeds": [("ms a seed and step (quartiles)", MILLISECONDS[1]), RATIO, FASTEST],
    "dispatch": [MILLISECONDS, RATIO, FASTEST],
    "convolutions": [
        ("count", number("count", "{:.0f}")),
        *((f"{name}, ms", number(name, "{:.3g}", 1e3)) for name in OPERATIONS),
        *(
            (f"{name}, ms", number(name, "{:.4g}", 1e3))
            for name in ("plain step", "sequential step", "two full passes")
        ),
    ],
    "collectives": [
        ("count", number("count", "{:.0f}")),
        ("bytes", prefixed("bytes", "B")),
        ("ms at 450 GB/s", number("seconds at 450 GB/s", "{:.3g}", 1e3)),
        ("ms at 50 GB/s", number("seconds at 50 GB/s", "{:.3g}", 1e3)),
    ],
}

NOTES = {
    "peak": "Product of two random square matrices; float32 is what JAX gives by default.",
    "models": (
        "Both sides start from the same weights (see the first loss), take the same batch and are timed in turns. "
        "`fsg_jax is faster by` is the median over rounds of the row's time over the time of the last fsg_jax row "
        "of its case, with quartiles. Share of peak: XLA's FLOP count of the plain step over what the matrix product "
        "of that precision reaches. Memory: by the compiled program's own analysis for fsg_jax (arguments, results, "
        "temporaries); what was allocated at most for PyTorch on a GPU, not known on a CPU. "
        "Compile seconds of PyTorch: the first call."
    ),
    "routing": (
        "Ratios to the plain step of the ungated model. FLOPs and temporaries by the compiler; with a gate pass at "
        "every k-th step, the mean FLOPs over k steps."
    ),
    "input": "Waiting: the part of the time of a fed step that exceeds the step on one batch that is already there.",
    "seeds": "Ratio to one after another, in the same rounds.",
    "dispatch": "Ratio to the Python loop, in the same rounds. Rows come from resident data, with augmentation.",
    "convolutions": (
        "Each operation by itself; sums weigh it by how often a step needs it. A sequential step needs, of the "
        "convolutions after the first gate, forward and input gradient twice, and all the rest once."
    ),
    "collectives": (
        "Instructions of the data-parallel step compiled for 8 virtual CPU devices, and the bytes of their buffers. "
        "Sent by each device: ring collectives of those buffers; milliseconds without any overlap with computation, "
        "at 450 GB/s a device (NVLink) and 50 GB/s (400 Gbit/s network), 5 microseconds a message."
    ),
}


def render(rows: Sequence[Row], facts: Row) -> str:
    """The page: what was run on what, then a table a suite."""
    parts = ["# Benchmark", _facts(facts)]
    for suite, columns in COLUMNS.items():
        if chosen := [row for row in rows if row["suite"] == suite and row["side"] != "compiled"]:
            parts += [f"## {suite}", NOTES[suite], _tables(chosen, columns)]
    return "\n\n".join(parts) + "\n"


def _facts(facts: Row) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    commit = facts["commit"] + (" with changes" if facts["dirty"] else "")
    named = {"command": f"`{facts['command']}`", "commit": commit, "hardware": facts["hardware"], "versions": versions}
    named |= {"started": facts["started"], "compilation cache": facts["compilation_cache"]}
    named |= {"XLA flags": f"`{facts['xla_flags']}`"} if facts["xla_flags"] else {}
    return "\n".join(f"- {name}: {value}" for name, value in named.items())


def _tables(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    used = [(title, cell) for title, cell in columns if any(cell(row) for row in rows)]
    lines = [_line(["case", "side", *(title for title, _ in used)]), _line(["---"] * (2 + len(used)))]
    return "\n".join(lines + [_line([row["case"], row["side"], *(cell(row) for _, cell in used)]) for row in rows])


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"
