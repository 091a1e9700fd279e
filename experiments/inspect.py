"""What gates chose: ``python -m experiments.inspect FOLDER... [--out DIR]``, of runs, checkpoints or saved models.

A table of the values by gate, which channels are selected, and how far networks that differ in their seed agree about
them, beside what chance would give. See docs/inspect.md.
"""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax.numpy as jnp
import numpy as np
import tyro

from experiments.errors import UserError, run_main
from experiments.gate_values import Gates, read_gates
from experiments.report.text_table import NOT_AVAILABLE, Table
from experiments.run_folder import writing_to
from fsg_jax._checks import expect
from fsg_jax._files import replacing, write_json, write_text
from fsg_jax.gates.agreement import Agreement, agreement, top_channels
from fsg_jax.gates.summary import summarise

QUANTILES = (0, 5, 25, 50, 75, 95, 100)
"""Percent."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Args:
    """Values of gates, the channels that they select, and the agreement of networks about them."""

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders: of a run, of runs (an arm, an ablation), of a checkpoint, or of a saved model."""
    out: Path | None = None
    """Folder for gates.csv, channels.csv, agreement.csv, inspect.json and a picture of each group."""
    threshold: float = 0.5
    """A channel is selected if its gate value is at least this."""
    top: float | None = None
    """Select this share of the channels of each gate, those with the largest values, instead."""
    format: Literal["table", "csv", "json"] = "table"
    """Of what is printed; csv: the table of the gates alone."""
    kind: str | None = None
    """Kind of the gates of a checkpoint that is in no folder of a run, e.g. sigmoid."""


def inspect(args: Args) -> dict[str, Any]:
    """Everything that is found, JSON-able: ``gates``, a row a network and gate; ``agreement``, a row a group and gate.

    Raises:
      UserError, ValueError, OSError: a folder cannot be used; see `read_gates`.
    """
    expect(math.isfinite(args.threshold), "--threshold", "a finite number", args.threshold)
    networks = [gates for path in args.paths for gates in read_gates(path, args.kind)]
    if not networks:
        raise UserError("FOLDER: expected one or more, found none")
    twice = sorted({one.name for one in networks if sum(one.name == other.name for other in networks) > 1})
    expect(not twice, "FOLDER", "every network once", f"twice: {', '.join(twice)}")
    chosen = [_select(one.values, args) for one in networks]
    rows = [row for one, sets in zip(networks, chosen, strict=True) for row in _gate_rows(one, sets)]
    found: dict[str, Any] = {"selection": _rule(args), "gates": rows, "agreement": [], "notes": {}}
    for group in dict.fromkeys(one.group for one in networks):
        members = [(one, sets) for one, sets in zip(networks, chosen, strict=True) if one.group == group]
        if len(members) > 1:
            found["agreement"] += _agreement_rows(group, [sets for _, sets in members])
            found["notes"][group] = note([one for one, _ in members])
    if args.out is not None:
        with writing_to(args.out):
            _write(args.out, found, networks, args)
    return found


def _select(values: Mapping[str, np.ndarray], args: Args) -> dict[str, np.ndarray]:
    if args.top is not None:
        return top_channels(values, args.top)
    return {name: found >= args.threshold for name, found in values.items()}


def _rule(args: Args) -> str:
    if args.top is not None:
        return f"the {args.top:.0%} of the channels of each gate with the largest values"
    return f"gate values of at least {args.threshold:g}"


def _gate_rows(network: Gates, sets: Mapping[str, np.ndarray]) -> Iterable[Row]:
    for name, values in network.values.items():
        summary = {key: float(value) for key, value in summarise(jnp.asarray(values)).items()}
        quantiles = zip(QUANTILES, np.percentile(values, QUANTILES).tolist(), strict=True)
        yield {
            **{"network": network.name, "from": network.origin, "gate": name, "channels": values.size},
            **{"selected": int(sets[name].sum()), **summary, **{f"p{q}": value for q, value in quantiles}},
            "which": np.flatnonzero(sets[name]).tolist(),
        }


def _agreement_rows(group: str, sets: Sequence[Mapping[str, np.ndarray]]) -> Iterable[Row]:
    try:
        found = agreement(sets)
    except ValueError as error:
        raise ValueError(f"{group}: {error}") from error
    for name, row in [*found.gates.items(), ("all gates", found.overall)]:
        yield {"group": group, "networks": len(sets), "gate": name, **_numbers(row)}


def _numbers(row: Agreement) -> Row:
    above = (row.jaccard - row.chance) / row.chance_std if row.chance_std > 1e-12 else None
    values = row._asdict() | {"sizes": list(row.sizes), "std_above_chance": above}
    return {name: None if isinstance(v, float) and math.isnan(v) else v for name, v in values.items()}


def note(networks: Sequence[Gates]) -> str:
    """Whether agreement about channels can be expected, from the initial weights of the networks."""
    weights = [one.initial or {} for one in networks]
    kernels = [path for path in weights[0] if path.endswith("kernel")]  # biases and scales begin equal in any case
    equal = sum(len({found.get(path) for found in weights}) == 1 for path in kernels)
    if kernels and equal == len(kernels):
        return f"All {equal} initial kernels are shared: agreement above chance is about the same channels."
    if not kernels or not all(weights):
        known = "Initial weights are not recorded. Networks that do not share them"
    else:
        known = f"{equal} of {len(kernels)} initial kernels are shared. Networks that do not share theirs"
    return f"{known} have exchangeable channels: no agreement above chance is then to be expected."


def _write(out: Path, found: dict[str, Any], networks: Sequence[Gates], args: Args) -> None:
    from experiments.gate_pictures import draw

    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "gates.csv", as_csv([{k: v for k, v in row.items() if k != "which"} for row in found["gates"]]))
    rows = zip((row for row in found["gates"]), (v for one in networks for v in one.values.values()), strict=True)
    channels = [
        {"network": row["network"], "gate": row["gate"], "channel": i, "value": value, "selected": int(i in chosen)}
        for row, values in rows
        for chosen in [set(row["which"])]
        for i, value in enumerate(values.tolist())
    ]
    write_text(out / "channels.csv", as_csv(channels))
    if found["agreement"]:
        write_text(out / "agreement.csv", as_csv(found["agreement"]))
    write_json(out / "inspect.json", found)
    groups = list(dict.fromkeys(one.group for one in networks))
    for number, group in enumerate(groups):
        members = [one for one in networks if one.group == group]
        with replacing(out / f"gates-{number}.png") as temporary:
            draw(temporary, group, members, None if args.top is not None else args.threshold)


def as_csv(rows: Sequence[Row]) -> str:
    """Rows with equal keys as CSV; lists are joined with blanks, and what is None is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in row.items()})
    return text.getvalue()


def as_text(found: Mapping[str, Any]) -> str:
    """Tables in Markdown."""
    parts = [f"Selected are {found['selection']}."]
    for network in dict.fromkeys(row["network"] for row in found["gates"]):
        rows = [row for row in found["gates"] if row["network"] == network]
        parts += [f"{network} ({rows[0]['from']})", _gate_table(rows).markdown()]
    for group, words in found["notes"].items():
        rows = [row for row in found["agreement"] if row["group"] == group]
        title = f"Agreement of {rows[0]['networks']} networks, {group}: mean Jaccard index over pairs"
        parts += [title, _agreement_table(rows).markdown(), words]
    return "\n\n".join(parts)


def _gate_table(rows: Sequence[Row]) -> Table:
    numbers = ["mean", "open", "closed", "entropy", *(f"p{q}" for q in QUANTILES)]
    cells = [
        (row["gate"], f"{row['selected']}/{row['channels']}", *(f"{row[name]:.3f}" for name in numbers)) for row in rows
    ]
    return Table(("gate", "selected", *numbers), cells)


def _agreement_table(rows: Sequence[Row]) -> Table:
    def number(value: float | None, form: str = ".3f") -> str:
        return NOT_AVAILABLE if value is None else format(value, form)

    cells = [
        (
            row["gate"],
            " ".join(map(str, row["sizes"])),
            number(row["jaccard"]),
            f"{row['chance']:.3f} ± {row['chance_std']:.3f}",
            number(row["std_above_chance"], "+.1f"),
            number(row["p_value"], ".4f"),
            number(row["kappa"]),
        )
        for row in rows
    ]
    return Table(("gate", "selected", "agreement", "by chance", "std above", "p", "kappa"), cells)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    args = tyro.cli(Args, args=argv, prog="python -m experiments.inspect")
    found = inspect(args)
    if args.format == "json":
        print(json.dumps(found, indent=1))
    elif args.format == "csv":
        print(as_csv([{k: v for k, v in row.items() if k != "which"} for row in found["gates"]]), end="")
    else:
        print(as_text(found))
        if args.out is not None:
            print(f"\nin {args.out}")


if __name__ == "__main__":
    run_main(main)
