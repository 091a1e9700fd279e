"""The polyp report as Markdown (tables) and as one self-contained HTML page (tables and figures)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from experiments.endoscopy.polyp_report import evaluation, panels, plots, strips, tables
from experiments.endoscopy.polyp_report.evaluation import UNITS, Bootstrap, Predictor
from experiments.endoscopy.polyp_report.predictions import Predictions, pool
from experiments.endoscopy.polyp_report.records import baseline_of, coverage, group, load
from experiments.report import facts
from experiments.report.configs import ConfigDiff, compare
from experiments.report.figures import colours, data_uri
from experiments.report.gate_plots import heatmaps, histograms
from experiments.report.pages import write_pages
from experiments.report.plots import learning_curve
from experiments.report.records import RESULTS, Arms, RecordsError, Results
from experiments.report.tables import arm_config, shared_config
from fsg_jax.endoscopy.sizing import SCHEMES, ClassScheme

CURVES = ("train_loss", "val_loss", "val_mae", "val_polyp_mae", "val_f1_macro", "val_polyp_f1_macro")
"""Columns of the history that are drawn, where they are there."""


class Study(NamedTuple):
    """Everything the report is made from."""

    directory: Path
    results: Results
    arms: Arms
    data: dict[str, Predictions]
    scheme: ClassScheme | None
    options: Bootstrap


def write_report(directory: Path | str, out: Path | str | None = None, *, resamples: int = 1000) -> tuple[Path, Path]:
    """Write report.md and report.html from `directory/results.jsonl`; return their paths.

    Args:
        directory: Holds results.jsonl and the files it names.
        out: Directory of the report, made if missing; `directory` by default.
        resamples: Of the bootstrap over polyps, 1 or more.

    Raises:
        FileNotFoundError: The directory, results.jsonl or a file of predictions is missing.
        RecordsError: A file cannot be used; the message names it.
    """
    if resamples < 1:
        raise RecordsError(f"resamples is {resamples}, expected 1 or more")
    study = _read(Path(directory), Bootstrap(resamples))
    content, intervals = _content(study)
    target = Path(directory if out is None else out)
    return write_pages(Path(__file__).parent, content, _figures(study, intervals), target)


def _read(directory: Path, options: Bootstrap) -> Study:
    results = load(directory)
    arms = group(results.finished)
    data = {name: pool(directory, runs.values()) for name, runs in arms.items()}
    schemes = {predictions.scheme for predictions in data.values()}
    if len(schemes) > 1:
        names = sorted("regression" if scheme is None else scheme.name for scheme in schemes)
        raise RecordsError(f"{directory / RESULTS}: expected one task, found {', '.join(names)}")
    return Study(directory, results, arms, data, schemes.pop(), options)


def _content(study: Study) -> tuple[dict[str, Any], dict[str, Any]]:
    arms, finished = study.arms, study.results.finished
    diff = compare(arms, per_run=("seed", "fold"))
    predictors = _predictors(study)
    pairs = _pairs(study)
    differences, intervals = (
        tables.size_differences(pairs, study.options)
        if study.scheme is None
        else tables.class_differences(pairs, study.scheme, study.options)
    )
    first = finished[0]
    return {
        "title": " and ".join(dict.fromkeys(record["experiment"] for record in finished)),
        "source": RESULTS,
        "synthetic": any(record["synthetic"] for record in finished),
        "regression": study.scheme is None,
        "arms": list(arms),
        "runs": len(finished),
        "folds": sorted({record["fold"] for record in finished}),
        "seeds": sorted({record["seed"] for record in finished}),
        "polyps": len({polyp for data in study.data.values() for polyp in data.polyp.tolist()}),
        "resamples": study.options.n_resamples,
        "warnings": _warnings(study, diff),
        "baselines": [predictor.name for predictor in predictors[len(arms) :]],
        "sizes": _size_tables(study, predictors),
        "classes": _class_tables(study, predictors),
        "differences": differences,
        "data": tables.data_table(first["data"]),
        "dropped": tables.dropped_table(first["data"]),
        "split": tables.split_table(first["split"]),
        "fold_counts": tables.fold_table(first["split"]),
        "run_facts": facts.run_facts(finished),
        "arm_facts": facts.arm_facts(arms),
        "shared_config": shared_config(diff),
        "arm_config": arm_config(diff, arms),
    }, intervals


def _predictors(study: Study) -> list[Predictor]:
    """The arms, then the baselines on the rows of the arm that has most."""
    widest = max(study.data.values(), key=lambda data: len(data.polyp))
    return [evaluation.arm(name, data) for name, data in study.data.items()] + evaluation.baselines(widest)


def _pairs(study: Study) -> list[tuple[Predictor, Predictor]]:
    pairs = []
    for name, data in study.data.items():
        one, baseline = evaluation.arm(name, data), baseline_of(name, study.arms)
        if baseline is not None:
            pairs.append((one, evaluation.arm(baseline, study.data[baseline])))
        pairs += [(one, other) for other in evaluation.baselines(data)]
    return pairs


def _size_tables(study: Study, predictors: list[Predictor]) -> dict[str, Any]:
    if study.scheme is not None:
        return {}
    return {unit: tables.size_tables(predictors, unit, study.options) for unit in UNITS}


def _schemes(study: Study) -> list[ClassScheme]:
    return [study.scheme] if study.scheme else [SCHEMES[name] for name in ("tri_class", "binary_10", "binary_5")]


def _class_tables(study: Study, predictors: list[Predictor]) -> dict[str, Any]:
    return {
        tables.scheme_title(scheme): {
            unit: tables.class_tables(predictors, unit, scheme, study.options) for unit in UNITS
        }
        for scheme in _schemes(study)
    }


def _warnings(study: Study, diff: ConfigDiff) -> list[str]:
    found = facts.common_warnings(study.results, study.arms, diff, between="runs")
    for name in ("data", "split", "synthetic"):
        if any(record[name] != study.results.finished[0][name] for record in study.results.finished):
            found.append(f"The runs differ in what they record of {name}; the first run's is shown.")
    if not all(data.baselines for data in study.data.values()):
        found.append("Some predictions hold no baselines, so that what to beat is missing for them.")
    found += _caveats(study)
    return [*coverage(study.arms), *found, *panels.embed(study.directory, study.arms)[1]]


def _caveats(study: Study) -> Iterator[str]:
    """What weakens the numbers."""
    for fold, shared in sorted({r["fold"]: r.get("shared", {}) for r in study.results.finished}.items()):
        if any(shared.values()):
            counts = ", ".join(f"{count} {name}" for name, count in shared.items())
            yield f"Fold {fold}: roles share {counts}; results on its test polyps may be too good."
    first = study.results.finished[0]
    if censored := first["data"].get("polyps whose size is a lower bound"):
        yield f"{censored} polyps have a lower bound as their size; they are scored as if it were the size."
    if outside := first["data"].get("boxes outside the field of view"):
        yield f"{outside} boxes lie outside the field of view; the network is given a blank for them."
    clamp = first["config"].get("loss", {}).get("clamp_mm")
    largest = max(float(data.size_mm.max()) for data in study.data.values())
    if study.scheme is None and clamp and largest > clamp[1]:
        yield f"Predictions end at {clamp[1]:g} mm and the largest polyp has {largest:g} mm; see loss.clamp_mm."


def _figures(study: Study, intervals: dict[str, Any]) -> dict[str, Any]:
    arms, palette = study.arms, colours(study.arms)
    labelled = "MAE difference per polyp, mm (below 0: better)" if study.scheme is None else "macro F1, points"
    forest = plots.forest(intervals, labelled)
    chosen = strips.choose(study.data)
    return {
        "colours": palette,
        "gated": [name for name, runs in arms.items() if any(record["gates"] for record in runs.values())],
        "forest": None if forest is None else data_uri(forest),
        "scatter": _size_figures(study, palette),
        "confusion": {name: _confusions(study, name) for name in arms},
        "strips": {
            strips.caption(polyp, study.data): data_uri(strips.strip(polyp, study.data, palette, _limit(study)))
            for polyp in chosen
        },
        "panels": panels.embed(study.directory, arms)[0],
        "curves": _curves(arms),
        "histograms": {layer: data_uri(figure) for layer, figure in histograms(arms).items()},
        "heatmaps": {name: data_uri(figure) for name, figure in heatmaps(arms).items()},
    }


def _size_figures(study: Study, palette: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Scatter and Bland-Altman figures by arm, all on the same axes."""
    if study.scheme is not None:
        return {}
    found = {name: plots.per_polyp(data) for name, data in study.data.items()}
    extent, limit = plots.difference_range(list(found.values())), _limit(study)
    return {
        name: (
            data_uri(plots.scatter(polyps, palette[name], limit)),
            data_uri(plots.bland_altman(polyps, palette[name], limit, extent)),
        )
        for name, polyps in found.items()
    }


def _confusions(study: Study, name: str) -> dict[str, str]:
    predictor = evaluation.arm(name, study.data[name])
    return {
        tables.scheme_title(scheme): data_uri(plots.confusion(evaluation.classes(predictor, "polyp", scheme), scheme))
        for scheme in _schemes(study)
    }


def _limit(study: Study) -> float:
    """The upper end of the axes of sizes, in mm."""
    tops = [data.size_mm.max() for data in study.data.values()]
    tops += [plots.per_polyp(data).high_mm.max() for data in study.data.values() if data.predicted_mm is not None]
    return float(max(tops)) * 1.08


def _curves(arms: Arms) -> dict[str, str]:
    figures = {name: learning_curve(arms, name, name) for name in CURVES}
    return {name: data_uri(figure) for name, figure in figures.items() if figure is not None}
