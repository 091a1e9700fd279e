"""``python -m experiments.bench [SUITE ...] --out DIR``: measures, writes bench.jsonl and bench.md, prints the table.

Every row is written when it is measured; ``--resume`` continues a benchmark that was cut off.
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import fields, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax

from experiments import provenance, xla_flags
from experiments.bench.measurements import Bench
from experiments.bench.settings import ATTENTIONS, MODELS, NORMS, PEERS, PRECISIONS, Settings, default_settings
from experiments.bench.suites import SUITES, render
from experiments.errors import run_main
from experiments.run_folder import writing_to
from fsg_jax._checks import check_choice
from fsg_jax._files import write_text

TABLE = "bench.md"


def bench(settings: Settings, suites: Sequence[str], out: Path, *, resume: bool = False) -> str:
    """Runs the suites and returns the page, which is also ``out/bench.md``.

    Raises:
      UserError: `out` is in the way; see `experiments.bench.measurements.Bench`.
    """
    about = gather_facts()
    record = Bench(settings, out, about["hardware"], resume=resume)
    for name in suites:
        SUITES[name].measure(record)
        page = render(record.rows, about)
        with writing_to(out):
            write_text(out / TABLE, page)
    return page


def gather_facts() -> dict[str, Any]:
    """`experiments.provenance.gather` with PyTorch's version and the compilation cache, which hides compiling."""
    about = provenance.gather()
    if find_spec("torch"):
        about["versions"]["torch"] = version("torch")
    config: Any = jax.config
    about["compilation_cache"] = "on" if config.jax_compilation_cache_dir else "off"
    return about


def parse(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, Settings]:
    """Arguments and the settings that they make; sizes that are not given come from the device, see `settings`."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bench",
        description="Speed, memory and compile time on this device, beside PyTorch where it is installed.",
    )
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)}; all by default")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of bench.jsonl and bench.md")
    parser.add_argument("--resume", action="store_true", help="keep and skip what the folder already has")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: shows that it runs, not how fast")
    parser.add_argument("--models", nargs="+", choices=MODELS)
    parser.add_argument("--precision", choices=PRECISIONS)
    parser.add_argument("--attention", choices=ATTENTIONS, help="of a ViT")
    parser.add_argument("--norm", choices=NORMS, help="whose class computes BatchNorm and LayerNorm")
    parser.add_argument("--peers", nargs="*", choices=PEERS, help="PyTorch peers; none if given without a value")
    parser.add_argument("--compile-mode", help="mode of torch.compile")
    parser.add_argument("--seconds", type=float, help="wall time of one sample of one side")
    parser.add_argument("--seeds", nargs="+", type=int, help="numbers of seeds side by side")
    parser.add_argument("--tokens", nargs="+", type=int, help="numbers of patches")
    for name in ("batch", "image", "width", "depth", "dim", "repeats", "steps", "epochs", "examples", "matmul"):
        parser.add_argument(f"--{name}", type=int)
    args = parser.parse_args(argv)
    values = {f.name: getattr(args, f.name, None) for f in fields(Settings)}
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if v is not None}
    try:
        for name in args.suites:
            check_choice("SUITE", name, SUITES)
        return args, replace(default_settings(jax.default_backend(), smoke=args.smoke), **given)
    except ValueError as error:
        parser.error(str(error))


def main() -> None:
    """Command line."""
    args, settings = parse()
    print(bench(settings, args.suites or list(SUITES), args.out, resume=args.resume))


if __name__ == "__main__":
    # JAX would take most of a GPU's memory for itself, and PyTorch could not run beside it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    xla_flags.speed_up_convolutions()
    run_main(main)
