"""``python -m experiments.bench [SUITE ...] --out DIR``: measures, writes bench.jsonl and bench.md, prints the table.

Every row is written when it is measured; ``--resume`` continues a benchmark that was cut off.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from experiments import provenance, xla_flags
from experiments.bench import collectives, compare, dispatch, inputs, peak, profile_ops, routing_cost, seeds
from experiments.bench.installed import is_installed
from experiments.bench.record import Bench
from experiments.bench.settings import MODELS, PEERS, PRECISIONS, Settings, default_settings
from experiments.bench.table import render
from experiments.errors import run_main
from experiments.run_folder import writing_to
from fsg_jax._files import write_text

SUITES: dict[str, Callable[[Bench], None]] = {
    module.SUITE: module.run
    for module in (peak, compare, routing_cost, inputs, seeds, dispatch, collectives, profile_ops)
}
TABLE = "bench.md"


def bench(settings: Settings, suites: Sequence[str], out: Path, *, resume: bool = False) -> str:
    """Runs the suites and returns the page, which is also ``out/bench.md``.

    Raises:
      UserError: `out` is in the way; see `experiments.bench.record.Bench`.
    """
    about = gather_facts()
    record = Bench(settings, out, about["hardware"], resume=resume)
    for name in suites:
        SUITES[name](record)
        page = render(record.rows, about)
        with writing_to(out):
            write_text(out / TABLE, page)
    return page


def gather_facts() -> dict[str, Any]:
    """`experiments.provenance.gather` with PyTorch's version and the compilation cache, which hides compilation."""
    about = provenance.gather()
    if is_installed("torch"):
        about["versions"]["torch"] = version("torch")
    config: Any = jax.config
    about["compilation_cache"] = "on" if config.jax_compilation_cache_dir else "off"
    return about


def parser() -> argparse.ArgumentParser:
    """The command line; sizes that are not given come from the device, see `settings`."""
    made = argparse.ArgumentParser(
        prog="python -m experiments.bench",
        description="Speed, memory and compile time on this device, beside PyTorch where it is installed.",
    )
    made.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)}; all by default")
    made.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of bench.jsonl and bench.md")
    made.add_argument("--resume", action="store_true", help="keep and skip what the folder already has")
    made.add_argument("--smoke", action="store_true", help="tiny sizes: shows that it runs, not how fast")
    made.add_argument("--models", nargs="+", choices=MODELS)
    made.add_argument("--precision", choices=PRECISIONS)
    made.add_argument("--peers", nargs="*", choices=PEERS, help="PyTorch peers; none if given without a value")
    made.add_argument("--compile-mode", help="mode of torch.compile")
    made.add_argument("--seconds", type=float, help="wall time of one sample of one side")
    made.add_argument("--seeds", nargs="+", type=_positive, help="numbers of seeds side by side")
    for name in ("batch", "image", "width", "depth", "dim", "repeats", "steps", "examples", "matmul"):
        made.add_argument(f"--{name}", type=_positive)
    return made


def parse(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, Settings]:
    """Arguments and the settings that they make."""
    made = parser()
    args = made.parse_args(argv)
    if unknown := [name for name in args.suites if name not in SUITES]:
        made.error(f"no suite is named {unknown[0]!r}; there are {', '.join(SUITES)}")
    values = {f.name: getattr(args, f.name, None) for f in fields(Settings)}
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if v is not None}
    settings = replace(default_settings(jax.default_backend(), smoke=args.smoke), **given)
    if problem := _problem(settings):
        made.error(problem)
    return args, settings


def _problem(settings: Settings) -> str | None:
    """What no benchmark can be run with."""
    if settings.repeats < 2:
        return f"--repeats is {settings.repeats}; expected 2 or more, or there is no spread"
    if settings.dim % 3 or settings.image % 4:
        return f"--dim is {settings.dim} and --image {settings.image}; expected multiples of 3 heads and patches of 4"
    if settings.batch > settings.examples:
        return f"--batch is {settings.batch}; expected at most --examples, {settings.examples}"
    return None


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {value}")
    return value


def main() -> None:
    """Command line."""
    args, settings = parse()
    print(bench(settings, args.suites or list(SUITES), args.out, resume=args.resume))


if __name__ == "__main__":
    # JAX would take most of a GPU's memory for itself, and PyTorch could not run beside it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    xla_flags.speed_up_convolutions()
    run_main(main)
