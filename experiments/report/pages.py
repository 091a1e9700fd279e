"""The report as Markdown (tables) and as one self-contained HTML page (tables and figures)."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from experiments.report import accuracy, initial_weights, run_info, tasks
from experiments.report.config_diff import compare
from experiments.report.figures import colours, data_uri
from experiments.report.join import join
from experiments.report.results_file import Record, Results, collect, load
from experiments.report.text_table import markdown
from experiments.report.training_plots import heatmaps, histograms
from fsg_jax._checks import check_integer, expect
from fsg_jax._files import write_text

PAGES = ("report.md", "report.html")


def write_report(directory: Path, /, *others: Path, out: Path | None = None, resamples: int = 1000) -> list[Path]:
    """Writes report.md and report.html from the results.jsonl of a directory, or of several; returns their paths.

    Args:
        directory: Holds results.jsonl, one JSON record per run, and the predictions it names, if any.
        others: More of the same experiment: other seeds, arms or folds, on equal hardware. What decides the result must
            be equal. The records of all are written into ``out/results.jsonl``.
        out: Where the report goes; made if missing; beside results.jsonl by default, needed for several directories.
        resamples: Of the bootstrap over polyps, 1 or more.

    Raises:
        FileNotFoundError: A directory, results.jsonl or a file of predictions is missing.
        RecordsError: A file cannot be used; the message names it, and the line. Or the directories do not belong
            together; what differs is named.
        ValueError: There are several directories and no `out`.
    """
    check_integer("resamples", resamples, 1)
    directory, expected = Path(directory), "a folder for what is joined from several ones"
    expect(out is not None or not others, "--out", expected, "none")
    out = Path(out or directory)
    if others:
        join([directory, *map(Path, others)], out)
        directory = out
    results = load(directory)
    if results.kind == "several tasks":
        template, section = "tasks", tasks.content(directory, results, resamples)
    elif results.kind == "polyp sizing":
        from experiments.report import polyps  # needs pyarrow

        template, section = "polyps", polyps.content(directory, results, resamples)
    else:
        template, section = "accuracy", accuracy.content(results)
    content = _frame(results, section.pop("warnings")) | section
    texts = {name: render(f"{template}{Path(name).suffix}.j2", content) for name in PAGES}
    out.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_text(out / name, text)
    return [out / name for name in texts]


def summary_table(records: Iterable[Record]) -> str:
    """The arms in a few numbers, in Markdown; records that are not finished are left out.

    Of a classification: arm, n, test accuracy mean ± std, paired difference to the baseline [95 % CI], p. Of polyp
    sizing: arm, runs, mean ± std of test metrics over the runs. Of several tasks: parameters too.

    Raises:
        RecordsError: No record is finished, two are of one run, or one is damaged.
    """
    results = collect(((f"record {number}", record) for number, record in enumerate(records, 1)), "the records")
    if results.kind == "several tasks":
        return tasks.summary(results.arms).markdown()
    if results.kind == "polyp sizing":
        from experiments.report import polyps

        return polyps.summary(results.arms).markdown()
    return accuracy.summary(results.arms).markdown()


def render(template: str, content: Mapping[str, Any]) -> str:
    """A template beside this module, filled; every value is escaped, for HTML or for Markdown."""

    def for_markdown(value: Any) -> Any:
        return Markup(markdown(value)) if isinstance(value, str) and not hasattr(value, "__html__") else value

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        finalize=for_markdown if template.endswith(".md.j2") else None,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["data_uri"] = data_uri
    return environment.get_template(template).render(content)


def _frame(results: Results, warnings: Iterable[str]) -> dict[str, Any]:
    """Variables of any report."""
    arms, records = results.arms, results.finished
    diff = compare(arms)
    return {
        "title": " and ".join(dict.fromkeys(record["experiment"] for record in records)),
        "arms": list(arms),
        "runs": len(records),
        "pooled": "seeds" if results.kind == "classification" else "folds and seeds",
        "seeds": sorted({record["seed"] for record in records}),
        "warnings": [*warnings, *run_info.warnings(results, diff)],
        "colours": colours(arms),
        "gated": [arm for arm, runs in arms.items() if any(record["gates"] for record in runs)],
        "histograms": histograms(arms),
        "heatmaps": heatmaps(arms),
        "arm_info": run_info.arm_table(arms),
        "run_info": run_info.run_table(records),
        "arm_config": diff.arm_table(arms),
        "initial_weights": list(initial_weights.sentences(arms)),
        "shared_config": diff.shared_table(),
    }
