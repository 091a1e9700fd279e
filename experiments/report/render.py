"""The report as Markdown (tables) and as one self-contained HTML page (tables and figures)."""

from pathlib import Path
from typing import Any

from experiments.report import facts, tables
from experiments.report.configs import compare
from experiments.report.figures import colours, data_uri
from experiments.report.gate_plots import heatmaps, histograms
from experiments.report.pages import write_pages
from experiments.report.plots import difference_plot, learning_curve
from experiments.report.records import RESULTS, Arms, Results, group, load

_SPLITS = ("test", "validation")
_CURVES = (
    ("val_accuracy", "validation accuracy, %", 100.0),
    ("train_loss", "training loss", 1.0),
)


def write_report(directory: Path | str, out: Path | str | None = None) -> tuple[Path, Path]:
    """Write report.md and report.html from `directory/results.jsonl`; return their paths.

    Args:
        directory: Holds results.jsonl.
        out: Directory of the report, made if missing; `directory` by default.

    Raises:
        FileNotFoundError: The directory or results.jsonl is missing.
        RecordsError: results.jsonl cannot be used; the message names the file and the line.
    """
    results = load(Path(directory))
    arms = group(results.finished)
    content = _content(results, arms)
    return write_pages(Path(__file__).parent, content, _figures(arms), Path(directory if out is None else out))


def _content(results: Results, arms: Arms) -> dict[str, Any]:
    diff = compare(arms)
    pairs = {split: tables.paired_by_arm(arms, split) for split in _SPLITS}
    return {
        "title": " and ".join(dict.fromkeys(record["experiment"] for record in results.finished)),
        "source": RESULTS,
        "arms": list(arms),
        "runs": len(results.finished),
        "seeds": sorted({seed for seeds in arms.values() for seed in seeds}),
        "warnings": facts.warnings(results, arms, diff),
        "summary": tables.summary(arms),
        "accuracy": {split: tables.accuracy(arms, split) for split in _SPLITS},
        "differences": {split: tables.differences(pairs[split]) for split in _SPLITS},
        "remarks": {split: tables.remarks(pairs[split]) for split in _SPLITS},
        "by_seed": tables.by_seed(arms, "test"),
        "most_pairs": max((len(pair.differences) for pair in pairs["test"].values()), default=0),
        "run_facts": facts.run_facts(results.finished),
        "arm_facts": facts.arm_facts(arms),
        "shared_config": tables.shared_config(diff),
        "arm_config": tables.arm_config(diff, arms),
    }


def _figures(arms: Arms) -> dict[str, Any]:
    palette = colours(arms)
    curves = {label: learning_curve(arms, name, label, scale) for name, label, scale in _CURVES}
    difference = difference_plot(tables.paired_by_arm(arms, "test"), palette)
    return {
        "colours": palette,
        "gated": [arm for arm, seeds in arms.items() if any(record["gates"] for record in seeds.values())],
        "difference_plot": None if difference is None else data_uri(difference),
        "curves": {label: data_uri(figure) for label, figure in curves.items() if figure is not None},
        "histograms": {layer: data_uri(figure) for layer, figure in histograms(arms).items()},
        "heatmaps": {arm: data_uri(figure) for arm, figure in heatmaps(arms).items()},
    }
