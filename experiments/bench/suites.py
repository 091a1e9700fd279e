"""All suites: what measures each, the columns of its table and the note above it; and the page of the tables."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from experiments.bench import collectives, comparisons, epochs, operations
from experiments.bench import layer_times as layers
from experiments.bench import sequence_lengths as lengths
from experiments.bench.measurements import Bench, Column, Row, number, prefixed, table


class Suite(NamedTuple):
    """One suite.

    Attributes:
      measure: adds the rows that are missing.
      note: how to read the table.
      columns: of the table, beside case and side.
      former: its name in earlier records, if it had another.
    """

    measure: Callable[[Bench], None]
    note: str
    columns: Sequence[Column]
    former: str = ""


IMAGES = ("images/s", number("{:,.0f}", 1, "images_per_second"))
MILLISECONDS = number("{:.4g}", 1e3, "seconds", "seconds_low", "seconds_high")
STEP = ("ms a step (quartiles)", MILLISECONDS)
COMPILE = ("compile s", number("{:.1f}", 1, "compile_seconds"))
COUNT = ("count", number("{:.0f}", 1, "count"))
RATIO = ("time ratio", number("{:.2f}", 1, "time_ratio"))
FASTEST: Column = ("fastest", lambda row: "yes" if row.get("fastest") else "")
NOTE: Column = ("", lambda row: row.get("note", ""))

SUITES = {
    "peak": Suite(
        comparisons.measure_peak,
        "Product of two random square matrices; float32 is what JAX gives by default.",
        [("ms", number("{:.4g}", 1e3, "seconds")), ("FLOP/s", prefixed("flops_per_second"))],
    ),
    "models": Suite(
        comparisons.compare_with_torch,
        "Both sides start from the same weights (see the first loss), take the same batch and are timed in turns. "
        "`fsg_jax is faster by` is the median over rounds of the row's time over the time of the last fsg_jax row "
        "of its case, with quartiles. Share of peak: XLA's FLOP count of the plain step over what the matrix product "
        "of that precision reaches. Memory: by the compiled program's own analysis for fsg_jax (arguments, results, "
        "temporaries); what was allocated at most for PyTorch on a GPU, not known on a CPU. "
        "Compile seconds of PyTorch: the first call.",
        [
            IMAGES,
            STEP,
            ("fsg_jax is faster by", number("{:.2f}", 1, "fsg_jax_speed_ratio", "ratio_low", "ratio_high")),
            ("share of peak", number("{:.1%}", 1, "share_of_peak")),
            COMPILE,
            ("memory", prefixed("memory_bytes", "B")),
            ("first loss", number("{:.4f}", 1, "first_loss")),
            NOTE,
        ],
    ),
    "routing": Suite(
        comparisons.compare_routing,
        "Ratios to the plain step of the ungated model. FLOPs and temporaries by the compiler; with a gate pass at "
        "every k-th step, the mean FLOPs over k steps.",
        [
            STEP,
            ("time ratio", number("{:.2f}", 1, "time_ratio", "ratio_low", "ratio_high")),
            ("FLOP ratio", number("{:.2f}", 1, "flops_ratio")),
            ("memory ratio", number("{:.2f}", 1, "memory_ratio")),
            ("temporaries", prefixed("temporary_bytes", "B")),
            COMPILE,
        ],
    ),
    "input": Suite(
        comparisons.compare_inputs,
        "Waiting: the part of the time of a fed step that exceeds the step on one batch that is already there.",
        [
            IMAGES,
            ("path alone, images/s", number("{:,.0f}", 1, "path_images_per_second")),
            ("waiting", number("{:.1%}", 1, "waiting")),
            NOTE,
        ],
    ),
    "seeds": Suite(
        comparisons.compare_seeds,
        "Ratio to one after another, in the same rounds.",
        [("ms a seed and step (quartiles)", MILLISECONDS), RATIO, FASTEST],
    ),
    "dispatch": Suite(
        comparisons.compare_dispatch,
        "Ratio to the Python loop, in the same rounds. Rows come from resident data, with augmentation.",
        [STEP, RATIO, FASTEST],
    ),
    epochs.SUITE: Suite(
        epochs.time_epochs,
        "Bookkeeping: milliseconds of an epoch of the loop less the medians of the same steps alone and, where it was "
        "validated, of validation on 200 digits alone, timed before and after the run; means have the epochs that "
        "save. The end of the run: its test, its record, and waiting until the last checkpoint is written.",
        [
            ("bookkeeping, ms (quartiles)", number("{:.1f}", 1e3, "books", "books_low", "books_high")),
            ("mean", number("{:.1f}", 1e3, "books_mean")),
            ("least", number("{:.1f}", 1e3, "books_least")),
            ("epoch, ms", number("{:.0f}", 1e3, "epoch")),
            ("steps alone, ms", number("{:.0f}", 1e3, "steps")),
            ("validation alone, ms", number("{:.0f}", 1e3, "validation")),
            ("end of the run, ms", number("{:.0f}", 1e3, "end")),
        ],
    ),
    layers.SUITE: Suite(
        layers.time_layers,
        "Each layer of a convolutional network by itself. JAX: the module of the model, compiled; PyTorch: not "
        "compiled. The input gradient of BatchNorm has those of scale and bias in it; JAX's is the time of forward and "
        "gradient in one program less that of forward. Sums weigh every operation by how often a step needs it; a "
        "sequential step needs, after the first gate, forward and input gradient twice, and all the rest once.",
        [
            COUNT,
            *((f"{name}, ms", number("{:.3g}", 1e3, name)) for name in layers.OPERATIONS),
            *((f"{name}, ms", number("{:.4g}", 1e3, name)) for name in layers.STEPS),
        ],
        former="convolutions",
    ),
    operations.SUITE: Suite(
        operations.time_operations,
        "Operations of a step by JAX's profiler, over 5 steps, those of all blocks or stages together: pass, module, "
        "and the last operation of a kernel that does several. Share: of the sum over all. On a CPU several run at "
        "once, and convolutions that XLA gives to other threads have the time until then, so that the sum is not the "
        "step, whose time is without the profiler.",
        [
            COUNT,
            ("ms a step", number("{:.2f}", 1e3, "seconds")),
            ("share", number("{:.1%}", 1, "share")),
            ("step, ms", number("{:.1f}", 1e3, "step")),
            NOTE,
        ],
    ),
    lengths.TOKENS: Suite(
        lengths.compare_lengths,
        "ViG (gated linear attention) against a ViT of equal width, patches of 16 pixels, in turns. Products: "
        "multiplications with an addition by the formulas, three times those of the forward pass with a backward one, "
        "beside the compiler's floating-point operations, two a product. Exponents: of time in the number of patches, "
        "over all lengths and between the last two. Crossing: from so many patches on ViG is faster.",
        [
            STEP,
            ("temporaries", prefixed("temporary_bytes", "B")),
            ("FLOPs", prefixed("flops")),
            ("products", prefixed("products")),
            ("exponent", number("{:.2f}", 1, "exponent")),
            ("at the end", number("{:.2f}", 1, "last_exponent")),
            ("crossing", number("{:.0f}", 1, "crossing")),
            COMPILE,
        ],
    ),
    lengths.CHUNKS: Suite(
        lengths.compare_chunks,
        "Gated linear attention alone, heads of 32 and 64 channels, gates about as ViG's at their start, forward and "
        "backward, in turns. Difference: the largest of the outputs from those of the recurrence.",
        [
            STEP,
            ("temporaries", prefixed("temporary_bytes", "B")),
            ("FLOPs", prefixed("flops")),
            ("difference", number("{:.1e}", 1, "largest_difference")),
            COMPILE,
        ],
    ),
    "collectives": Suite(
        collectives.count_collectives,
        "Instructions of the data-parallel step compiled for 8 virtual CPU devices, and the bytes of their buffers. "
        "Sent by each device: ring collectives of those buffers; milliseconds without any overlap with computation, "
        "at 450 GB/s a device (NVLink) and 50 GB/s (400 Gbit/s network), 5 microseconds a message.",
        [
            COUNT,
            ("bytes", prefixed("bytes", "B")),
            *((f"ms at {link}", number("{:.3g}", 1e3, f"seconds at {link}")) for link in collectives.LINKS),
        ],
    ),
}


def render(rows: Sequence[Row], facts: Row) -> str:
    """The page: what was run on what, then a table a suite."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    commit = facts["commit"] + (" with changes" if facts["dirty"] else "")
    named = {"command": f"`{facts['command']}`", "commit": commit, "hardware": facts["hardware"], "versions": versions}
    named |= {"started": facts["started"], "compilation cache": facts["compilation_cache"]}
    named |= {"XLA flags": f"`{facts['xla_flags']}`"} if facts["xla_flags"] else {}
    parts = ["# Benchmark", "\n".join(f"- {name}: {value}" for name, value in named.items())]
    for name, suite in SUITES.items():
        names = (name, suite.former)
        if chosen := [row for row in rows if row["suite"] in names and row["side"] != collectives.COMPILED]:
            parts += [f"## {name}", suite.note, table(chosen, suite.columns)]
    return "\n\n".join(parts) + "\n"
