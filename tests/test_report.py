"""The report: statistics against hand-worked numbers and SciPy, rendering, bad input."""

import base64
import copy
import json
import os
import re
import subprocess
import sys
import textwrap
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from experiments.configs import CONFIGS
from experiments.errors import run_main
from experiments.report import RecordsError, summary_table, write_report
from experiments.report import trials as trial_report
from experiments.report.__main__ import main
from experiments.report.config_diff import compare
from experiments.report.results_file import Arms, Record, collect, load
from experiments.report.statistics import paired
from experiments.report.text_table import mean_and_std
from experiments.report.training_plots import curve, final_gates, heatmaps, histograms, learning_curves, mean_gates

ARMS = ("fsg", "baseline", "fsg_gr", "se")
LAYERS = ("stage1/gate", "stage2/gate")


def make_record(arm: str, seed: int, epochs: int = 4) -> Record:
    """A plausible record; accuracy and gates depend on the arm and the seed."""
    rng = np.random.default_rng([seed, *arm.encode()])
    accuracy = 0.6 + 0.01 * ("fsg" in arm) + 0.001 * int(rng.integers(-9, 10))
    has_gates = arm.startswith("fsg")
    values = {layer: rng.beta(2, 2, 16 * (i + 1)).tolist() for i, layer in enumerate(LAYERS)}
    gates = values if has_gates else {}
    model = {"name": "resnet18", "width": [64, 128], "gate": {"kind": arm, "temperature": 1.0}}
    return {
        "experiment": "synthetic",
        "arm": arm,
        "seed": seed,
        "status": "finished",
        "config": {"seed": seed, "model": model, "optimiser": {"learning_rate": 0.1}},
        "facts": {
            "commit": "abc123",
            "dirty": False,
            "command": "python -m experiments.ablate synthetic",
            "python": "3.11.7",
            "versions": {"jax": "0.10.2", "flax": "0.12.8"},
            "hardware": "cpu: two cores",
            "device": "cpu",
            "started": f"2026-01-0{seed + 1}T12:00:00+00:00",
            "minutes": 3.0 + seed,
            "compile_seconds": 7.1,
        },
        "parameters": {"params": 11220132, "gates": 48 if has_gates else 0},
        "validation": {"accuracy": accuracy + 0.01, "loss": 1.4},
        "test": {"accuracy": accuracy, "loss": 1.5},
        "num_train": 45000,
        "num_validation": 5000,
        "num_test": 10000,
        "dropped_per_epoch": 37,
        "history": [make_row(epoch, accuracy, gates, rng) for epoch in range(1, epochs + 1)],
        "gates": gates,
    }


def make_row(epoch: int, accuracy: float, gates: dict, rng: np.random.Generator) -> dict:
    row = {
        "epoch": epoch,
        "step": 390 * epoch,
        "train_loss": 4 / epoch + 0.1 * rng.random(),
        "train_accuracy": accuracy * (1 - 0.5 / epoch),
        "gates": {layer: {"mean": float(np.mean(v)) / epoch, "open": 0.1} for layer, v in gates.items()},
    }
    if epoch % 2 == 0:
        row |= {"val_loss": 3 / epoch, "val_accuracy": accuracy * (1 - 0.4 / epoch)}
    return row


def save(directory: Path, records: list[Record]) -> Path:
    (directory / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return directory


@pytest.fixture
def records() -> list[Record]:
    return [make_record(arm, seed) for seed in range(3) for arm in ARMS]


def arms_of(records: list[Record]) -> Arms:
    return collect(((f"record {n}", record) for n, record in enumerate(records)), "the records").arms


def report(directory: Path, records: list[Record]) -> tuple[str, str]:
    markdown, html = write_report(save(directory, records))
    return markdown.read_text(), html.read_text()


def test_mean_and_std_match_hand_worked_numbers():
    # Deviations from 0.4 are -0.2, 0, 0.2: variance 0.08 / 2, std 0.2.
    assert mean_and_std([0.2, 0.4, 0.6]) == ("40.00", "20.00")
    assert mean_and_std([2.0, 4.0, 6.0], "{:.1f}".format) == ("4.0", "2.0")
    assert mean_and_std([0.5]) == ("50.00", "n/a")
    assert mean_and_std([]) == ("n/a", "n/a")


def test_paired_matches_hand_worked_numbers():
    result = paired({0: 2.0, 1: 4.0, 2: 6.0, 7: 9.0}, {0: 1.0, 1: 2.0, 2: 3.0, 8: 9.0})
    # Differences 1, 2, 3: mean 2, std 1, standard error 1 / sqrt(3); t of 97.5 % with 2 degrees is 4.30265.
    assert result.differences == {0: 1.0, 1: 2.0, 2: 3.0}
    assert result.mean == pytest.approx(2.0)
    assert result.interval == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), rel=1e-6)
    # With 2 degrees of freedom p = 1 - t / sqrt(t^2 + 2), here t^2 = 12.
    assert result.p_value == pytest.approx(1 - (12 / 14) ** 0.5, rel=1e-9)
    assert result.note == ""


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 10_000)), min_size=2, max_size=8),
    st.sampled_from([0.9, 0.95]),
)
def test_paired_matches_scipy(counts, confidence):
    treatment, control = np.array(counts).T / 10_000
    result = paired(dict(enumerate(treatment)), dict(enumerate(control)), confidence)
    differences = treatment - control
    assert result.mean == pytest.approx(differences.mean())
    if np.ptp(differences) < 1e-9:
        assert result.interval is result.p_value is None
        return
    expected = stats.ttest_1samp(differences, 0.0)
    assert result.p_value == pytest.approx(expected.pvalue, rel=1e-6)
    assert result.interval == pytest.approx(tuple(expected.confidence_interval(confidence)), rel=1e-6)


@pytest.mark.parametrize(
    ("treatment", "control", "mean", "note"),
    [
        ({0: 0.5}, {1: 0.4}, None, "no seed"),
        ({0: 0.5, 1: 0.6}, {0: 0.4}, 0.1, "one pair"),
        ({0: 0.5, 1: 0.6, 2: 0.7}, {0: 0.4, 1: 0.5, 2: 0.6}, 0.1, "equal"),
        ({0: 0.5, 1: 0.6}, {0: 0.5, 1: 0.6}, 0.0, "equal"),
    ],
)
def test_paired_says_why_there_is_no_interval(treatment, control, mean, note):
    result = paired(treatment, control)
    assert result.mean == (None if mean is None else pytest.approx(mean))
    assert result.interval is None
    assert result.p_value is None
    assert note in result.note


def test_summary_table_has_the_numbers_of_each_arm():
    accuracies = {"fsg": (0.62, 0.64, 0.66), "baseline": (0.61, 0.62, 0.63)}
    records = [make_record(arm, seed) for arm in accuracies for seed in range(3)]
    for record in records:
        record["test"]["accuracy"] = accuracies[record["arm"]][record["seed"]]
    records.append(make_record("fsg", 3) | {"status": "failed"})
    lines = summary_table(records).splitlines()
    assert lines[2] == "| baseline | 3 | 62.00 ± 1.00 | reference |  |"
    # As in the hand-worked case: differences of 1, 2, 3 points.
    assert lines[3] == "| fsg | 3 | 64.00 ± 2.00 | +2.00 [-0.48, +4.48] | 0.074 |"


def test_report_shows_arms_numbers_and_facts(tmp_path, records):
    markdown, html = report(tmp_path, records)
    mean = 100 * np.mean([r["test"]["accuracy"] for r in records if r["arm"] == "fsg_gr"])
    for text in (markdown, html):
        assert all(arm in text for arm in ARMS)
        assert f"{mean:.2f}" in text
        assert "abc123" in text
        assert "python -m experiments.ablate synthetic" in text
        assert "jax 0.10.2, flax 0.12.8" in text
        assert "11,220,132" in text
        assert "4.0 (3.0 .. 5.0)" in text
        assert "not corrected for the number of arms (3 comparisons)" in text
        assert "model.gate.kind" in text
        assert "Warnings" not in text
    assert summary_table(records) in markdown
    assert [line.split(" | ")[0] for line in summary_table(records).splitlines()[2:]] == [
        f"| {arm}" for arm in ("baseline", "fsg", "fsg_gr", "se")
    ]


@pytest.mark.slow
def test_a_classification_needs_nothing_of_endoscopy(tmp_path):
    code = """
        import sys
        sys.modules |= dict.fromkeys(("pyarrow", "array_record", "experiments.report.polyps"))  # cannot be imported
        from experiments.report.__main__ import main
        main(sys.argv[1:])
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(save(tmp_path, [make_record("baseline", 0, 1)]))]
    subprocess.run(command, check=True, cwd=Path(__file__).parent.parent)
    assert (tmp_path / "report.html").exists()


def test_html_is_self_contained(tmp_path, records):
    _, html = report(tmp_path, records)
    sources = re.findall(r'src="([^"]*)"', html)
    # One forest plot, two curves, one histogram per layer, one heatmap per gated arm.
    assert len(sources) == 1 + 2 + len(LAYERS) + 2
    for source in sources:
        kind, _, data = source.partition(",")
        assert kind == "data:image/svg+xml;base64"
        assert ElementTree.fromstring(base64.b64decode(data)).tag.endswith("svg")
    assert not re.search(r"https?://|<link|<script|url\(|@import", html)


def test_report_is_deterministic_and_leaves_nothing_else(tmp_path, records):
    first = report(tmp_path, records)
    assert report(tmp_path, records) == first
    assert {p.name for p in tmp_path.iterdir()} == {"results.jsonl", "report.md", "report.html"}


def test_figures_leave_the_settings_of_matplotlib_alone(tmp_path, records):
    before = dict(mpl.rcParams)
    report(tmp_path, records)
    assert dict(mpl.rcParams) == before


def test_html_escapes_what_the_records_say(tmp_path, records):
    for record in records:
        record["facts"]["command"] = "run <script>alert(1)</script> a|b"
        record["arm"] = record["arm"].replace("se", "s<b>|e")
    markdown, html = report(tmp_path, records)
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "a\\|b" in markdown
    assert "s<b>" not in html
    assert "s&lt;b&gt;|e" in html
    assert "\n| s&lt;b>\\|e | 3 |" in markdown


def test_one_seed(tmp_path):
    markdown, html = report(tmp_path, [make_record(arm, 0) for arm in ARMS])
    assert "only one pair, an interval needs two or more" in markdown
    assert "only one pair, an interval needs two or more" in html
    assert "± n/a" in summary_table([make_record("baseline", 0)])
    assert "nan" not in markdown


def test_only_the_baseline(tmp_path):
    markdown, html = report(tmp_path, [make_record("baseline", seed) for seed in range(2)])
    assert "need a finished run of the baseline and of another arm" in markdown
    assert "No arm has recorded gate values." in html
    assert "Differs between arms" not in html


def test_without_a_baseline(tmp_path):
    markdown, _ = report(tmp_path, [make_record(arm, seed) for seed in range(2) for arm in ("fsg", "se")])
    assert "No run of the baseline is finished" in markdown


def test_without_history_and_gates(tmp_path, records):
    for record in records:
        record["history"], record["gates"] = [], {}
    _, html = report(tmp_path, records)
    assert "the records have no history" in html
    assert "No arm has recorded gate values." in html


def test_missing_seeds_and_unfinished_runs_are_reported(tmp_path, records):
    kept = [r for r in records if (r["arm"], r["seed"]) != ("fsg", 2)]
    kept.append({"arm": "fsg", "seed": 2, "status": "interrupted"})
    kept.append({"status": "??"})
    markdown, _ = report(tmp_path, kept)
    assert "Arm fsg has no finished run of seed 2" in markdown
    assert "2 of the records are not finished and left out: fsg seed 2 (interrupted), ? seed ? (??)" in markdown
    assert "| fsg | 2 | " in markdown


def test_differing_runs_are_warned_about(tmp_path, records):
    records[0]["config"]["optimiser"]["learning_rate"] = 0.2
    records[1]["experiment"] = "other"
    records[2]["facts"] |= {"commit": "def456", "dirty": True}
    records[3]["num_test"] = 9999
    records[4]["gates"][LAYERS[0]][0] = float("nan")
    markdown, html = report(tmp_path, records)
    for text in (
        "Arm fsg: configuration key optimiser.learning_rate differs between runs: 0.2 or 0.1.",
        "different experiments: synthetic (11 runs); other (1 run)",
        "The runs differ in commit: abc123 (11 runs); def456 (1 run)",
        "1 of 12 runs were made with uncommitted changes",
        "The runs differ in the number of test examples",
        "Arm fsg: 1 of 144 final gate values are not finite",
    ):
        assert text in markdown
        assert text in html


def test_compare_finds_exactly_what_differs(records):
    records[0]["config"]["only_here"] = True
    diff = compare(arms_of(records))
    assert diff.per_run == ["seed"]
    assert diff.shared["model.width"] == "[64, 128]"
    assert diff.between_arms == {
        "model.gate.kind": {arm: f'"{arm}"' for arm in ARMS},
        "only_here": {arm: "true or (absent)" if arm == "fsg" else "(absent)" for arm in ARMS},
    }
    assert diff.within_arms == {("fsg", "only_here"): ["true", "(absent)"]}


def test_curve_averages_the_seeds_that_have_the_value():
    histories = (
        [{"epoch": 1, "x": 1.0}, {"epoch": 2, "x": 5.0}, {"epoch": 3}],
        [{"epoch": 1, "x": 3.0}, {"epoch": 2, "x": None}, {"epoch": 4, "x": float("inf")}],
    )
    epochs, mean, std = curve([{"history": history} for history in histories], "x")
    assert epochs.tolist() == [1, 2, 4]
    np.testing.assert_array_equal(mean, [2.0, 5.0, np.nan])
    np.testing.assert_allclose(std, [2**0.5, 0.0, 0.0])


def test_no_line_is_drawn_through_epochs_without_a_value(records):
    """Of validation at epochs 2, 4, 5 and 6: a point, and a line of three."""
    for record in records:
        record["history"] = [{"epoch": epoch, "x": 0.1 * epoch} for epoch in (2, 4, 5, 6)]
    figure = learning_curves(arms_of(records), {"x": ("x", 1.0)})["x"]
    (axes,) = figure.axes
    lines = [line for line in axes.lines if line.get_label() in ARMS]
    assert len(lines) == len(ARMS)
    for line in lines:
        x, y = line.get_data()
        np.testing.assert_array_equal(x, [2, np.nan, 4, 5, 6])
        np.testing.assert_allclose(y, 0.1 * x)
        assert 0 in line.get_markevery()


def test_gates_are_pooled_over_seeds(records):
    arms = arms_of(records)
    pooled = final_gates(arms)
    assert list(pooled) == list(LAYERS)
    assert {arm: values.size for arm, values in pooled[LAYERS[1]].items()} == {"fsg": 96, "fsg_gr": 96}
    layers, epochs, grid = mean_gates(arms["fsg"])
    expected = np.mean([np.mean(record["gates"][LAYERS[0]]) for record in arms["fsg"]])
    assert (layers, epochs) == (list(LAYERS), [1, 2, 3, 4])
    np.testing.assert_allclose(grid[0], expected / np.arange(1, 5))
    assert list(histograms(arms)) == list(LAYERS)
    assert list(heatmaps(arms)) == ["fsg", "fsg_gr"]


def test_histogram_bars_sum_to_one(records):
    for record in records:
        record["gates"] = {layer: [0.5] * len(values) for layer, values in record["gates"].items()}
    axes = histograms(arms_of(records))[LAYERS[0]].axes[0]
    outlines = [patch for patch in axes.patches if not patch.get_fill()]
    assert [patch.get_data().values.sum() for patch in outlines] == pytest.approx([1.0, 1.0])


def edited(**changes: object) -> str:
    return json.dumps(make_record("fsg", 0) | changes)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"arm": "fsg", ', r"results\.jsonl, line 2: expected JSON, found "),
        ("\udcff".encode("utf-8", "surrogateescape").decode("latin-1"), "line 2: expected JSON, found "),
        ("[1]", "line 2: expected a JSON object, found list"),
        (edited(arm=None), "line 2, arm: expected str, found nothing"),
        (edited(seed="0"), "line 2, seed: expected int, found '0'"),
        (edited(test={"accuracy": 61.0}), r"line 2, test\.accuracy: expected a number in \[0, 1\], found 61\.0"),
        (edited(history=[{"step": 1}]), "line 2, history: expected rows with an epoch number, found {"),
        (edited(gates={"stage1": 0.5}), "line 2, gates of stage1: expected a list, found 0.5"),
        (edited(arm="baseline"), "line 2: expected one finished run of baseline seed 0, found another in .*, line 1"),
    ],
)
def test_bad_lines_name_the_file_and_the_line(tmp_path, line, message):
    good = json.dumps(make_record("baseline", 0))
    (tmp_path / "results.jsonl").write_text(f"{good}\n{line}\n", encoding="latin-1")
    with pytest.raises(RecordsError, match=message):
        load(tmp_path)


NAN, INF = float("nan"), float("inf")
NOT_A = {
    "text": [None, True, 3, -1.5, [], {}, ["x"], NAN],
    "whole": [None, True, 1.5, "x", [], {}, NAN, -1, 2**70],
    "mapping": [None, True, 3, "x", [], [1], NAN],
    "list": [None, True, 3, "x", {}, {"a": 1}, NAN],
    "number": [True, "x", [], {}, "0.5"],
}
"""Values that are none of their name."""

KINDS = {
    ("experiment",): "text",
    ("arm",): "text",
    ("seed",): "whole",
    ("config",): "mapping",
    ("facts",): "mapping",
    ("facts", "minutes"): "number",
    ("facts", "compile_seconds"): "number",
    ("parameters",): "mapping",
    ("validation",): "mapping",
    ("test",): "mapping",
    ("history",): "list",
    ("history", 0): "mapping",
    ("history", 0, "train_loss"): "number",
    ("history", 0, "gates", LAYERS[0]): "mapping",
    ("history", 0, "gates", LAYERS[0], "mean"): "number",
    ("gates",): "mapping",
    ("gates", LAYERS[0]): "list",
    ("gates", LAYERS[0], 0): "number",
}
DAMAGED = [(path, value) for path, kind in KINDS.items() for value in NOT_A[kind]]
DAMAGED += [(("history", 0, "epoch"), value) for value in (None, True, "1", NAN, INF, -1, 2**70)]
DAMAGED += [(("history", 0, "gates"), value) for value in (3, "x", [1], True)]
DAMAGED += [
    ((split, "accuracy"), value) for split in ("test", "validation") for value in (None, True, "1", NAN, 1.1, -1)
]
DAMAGED += [(("initial_weights",), value) for value in (3, "x", [1], {"a": 1}, {"a": None})]
DAMAGED += [(("arm",), "x" * 300), (("facts", "deep"), [[]]), (("gates", "x" * 300), [])]
DAMAGED += [((name,), ...) for name in ("experiment", "arm", "seed", "config", "facts", "parameters", "test", "gates")]


@pytest.mark.parametrize(("path", "value"), DAMAGED, ids=str)
def test_damaged_records_name_the_file_and_the_line(tmp_path, path, value):
    record = at = make_record("fsg", 0, 1)
    for key in path[:-1]:
        at = at[key]
    if value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    if value == [[]]:
        for _ in range(60):
            at["deep"] = [at["deep"]]
    with pytest.raises(RecordsError, match=r"results\.jsonl, line 2\b.*expected") as caught:
        load(save(tmp_path, [make_record("baseline", 0, 1), record]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        b'{"arm": "a", "arm": "b"}',
        b'{"facts": {"x": 1, "x": 1}}',
        b'{"arm": "\\ud800"}',
        b'{"arm": "\xff"}',
        b"[" * 10**5,
        b'{"a":' * 10**5,
        b"9" * 5000,
        b"NaN",
        b'"finished"',
        b"3",
        b"null",
        b"\x00",
        b'{"a": 1} {"b": 2}',
    ],
    ids=lambda line: str(line[:30]),
)
def test_lines_that_are_no_record(tmp_path, line):
    (tmp_path / "results.jsonl").write_bytes(json.dumps(make_record("baseline", 0)).encode() + b"\n" + line)
    with pytest.raises(RecordsError, match=r"results\.jsonl, line 2\b.*expected"):
        load(tmp_path)


HOSTILE = [
    "<script>alert(1)</script>\n# heading",
    "x\r\n\r\n- item|`code`\u2028# z",
    "[x](javascript:1) ![i](u) <!-- c </h1>",
    "$\\frac{$ \x00 a\\|b *b* &lt;b&gt;",
    "_hidden 日本 😀",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_the_records_say_is_text_in_both_pages(tmp_path, text):
    records = [make_record(arm, seed, 2) for seed in range(2) for arm in ("baseline", "fsg")]
    for record in records:
        record["experiment"] = text
        record["arm"] = text if record["arm"] == "fsg" else "baseline"
        record["gates"] = {f"{text}{layer}": values for layer, values in record["gates"].items()}
        record["config"][text] = record["facts"][text] = record["facts"]["command"] = text
    records.append({"arm": text, "status": text, "seed": [text]})
    markdown, html = report(tmp_path, records)
    assert not re.search(r"<[A-Za-z/!?]|\](?=\()|(?<!\\)`(?!r(eport.html|esults.jsonl)`|[ .,])|&lt;b&gt;", markdown)
    headings = [line for line in markdown.splitlines() if line.startswith("#")]
    assert headings[1:] == [
        "## Warnings",
        "## Accuracy",
        "## Differences to the baseline",
        "## Runs",
        "## Configuration",
    ]
    rows = markdown.split("\nTest accuracy by seed")[0].split("Validation:\n\n")[1].strip().splitlines()
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [6] * 4
    assert "<script" not in html
    for source in re.findall(r'src="data:image/svg\+xml;base64,([^"]*)"', html):
        ElementTree.fromstring(base64.b64decode(source))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "foo"])
def test_no_command_depends_on_the_backend(tmp_path, backend):
    code = """
        import os, sys
        import experiments.panels, experiments.ablate
        from experiments.report.__main__ import main
        main(sys.argv[1:])
        print(os.environ["MPLBACKEND"], "matplotlib.pyplot" in sys.modules)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(save(tmp_path, [make_record("baseline", 0, 1)]))]
    done = subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"MPLBACKEND": backend},
    )
    assert done.stdout.splitlines()[-1] == f"{backend} False"


def test_runs_of_two_kinds_are_refused(tmp_path):
    polyps = make_record("fsg", 0) | {"streams": ["rgb"], "fold": 0, "synthetic": True, "data": {}, "split": {}}
    save(tmp_path, [make_record("baseline", 0), polyps | {"predictions": "p.parquet"}])
    with pytest.raises(RecordsError, match="expected runs of one kind, found classification and polyp sizing"):
        load(tmp_path)


def test_unfinished_records_may_hold_anything(tmp_path, records):
    odd = [{"arm": 3, "streams": None, "seed": [], "status": 1}, {"arm": "x", "streams": ["a", 1], "fold": {}}]
    markdown, _ = report(tmp_path, [*records, *odd])
    assert (
        "2 of the records are not finished and left out: 3 seed [] (1), x · a + 1 fold {} seed ? (no status)."
        in markdown
    )


def test_no_finished_run_is_an_error(tmp_path):
    save(tmp_path, [{"arm": "fsg", "seed": 0, "status": "failed"}])
    with pytest.raises(RecordsError, match=r"expected a finished run, found none \(1 unfinished\)"):
        write_report(tmp_path)
    with pytest.raises(RecordsError, match="expected a finished run, found none"):
        summary_table([])


def test_summary_table_rejects_duplicates(records):
    with pytest.raises(
        RecordsError, match="record 13: expected one finished run of fsg seed 0, found another in record 1"
    ):
        summary_table([*records, copy.deepcopy(records[0])])


def test_a_failed_run_does_not_clash_with_its_repetition(tmp_path):
    failed = make_record("baseline", 0) | {"status": "failed"}
    results = load(save(tmp_path, [failed, make_record("baseline", 0)]))
    assert (len(results.finished), len(results.unfinished)) == (1, 1)


def test_command_writes_to_out_and_prints_the_paths(tmp_path, records, capsys):
    out = tmp_path / "new" / "folder"
    main([str(save(tmp_path, records)), "--out", str(out)])
    assert capsys.readouterr().out.split() == [str(out / "report.md"), str(out / "report.html")]
    assert (out / "report.html").stat().st_size > 10_000
    assert not (tmp_path / "report.md").exists()


def fails(args: list[str], capsys) -> str:
    """What the command prints on stderr before it exits with 2."""
    with pytest.raises(SystemExit) as exit:
        run_main(lambda: main(args))
    assert exit.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


@pytest.mark.parametrize("missing", ["directory", "file"])
def test_command_says_in_one_line_what_is_missing(tmp_path, capsys, missing):
    path = tmp_path / "nowhere" if missing == "directory" else tmp_path
    with pytest.raises(FileNotFoundError):
        write_report(path)
    error = fails([str(path)], capsys)
    assert error.count("\n") == 1
    assert str(path) in error


def test_command_says_in_one_line_what_is_corrupt(tmp_path, capsys):
    (tmp_path / "results.jsonl").write_text("{\n")
    assert "results.jsonl, line 1: expected JSON, found " in fails([str(tmp_path)], capsys)


def trial(number: int, state: str, value: float | None, metric: str = "accuracy") -> dict:
    seeds = [] if value is None else [{"last": value, "epochs": 5}]
    return {
        "trial": number,
        "state": state,
        "validation": value if state == "finished" else None,
        "metric": metric,
        "reason": "" if state == "finished" else "why",
        "seconds": 12.3,
        "values": {"optimizer.learning_rate": 0.01},
        "seeds": seeds,
    }


@pytest.mark.parametrize(
    ("trials", "smallest", "texts"),
    [
        (
            [trial(0, "finished", 0.5), trial(1, "pruned", 0.6), trial(2, "failed", None), trial(3, "finished", 0.7)],
            False,
            (
                "4 trials (2 finished, 1 pruned, 1 failed), 1 seed of at most",
                "| 3 | 70.00 | +20.00 | 70.00 | 5 | finished | 0.01 | 12 |\n| 0 | 50.00 |  | 50.00 | 5 |",
                "| 1 | (60.00) |  | 60.00 | 5 | pruned | 0.01 | 12 |\n| 2 |  |  |  |  | failed | 0.01 | 12 |\n\n",
                "\n- Trial 1: why\n- Trial 2: why\n\nTrial 3 is the best of 2 that finished and 4 tried: 70.00, +20.00",
                "one standard error of it is 3.24.",  # sqrt(0.7 * 0.3 / 200)
                "```\npython -m experiments.ablate digits --seeds 3 --arms baseline fsg --out runs/digits_tuned --opt",
            ),
        ),
        ([trial(0, "finished", 0.5), trial(1, "finished", 0.5)], False, ("None of 2 trials was better on",)),
        ([trial(0, "failed", None)], False, ("- Trial 0: why\n\nNo trial has finished.\n",)),
        (
            [trial(0, "finished", 2.5, "mae"), trial(1, "finished", 2.0, "mae")],
            True,
            ("Trial 1 is the best of 2 that finished and 2 tried: 2.0000, -0.5000 to trial 0",),
        ),
    ],
)
def test_report_of_a_search(tmp_path, trials, smallest, texts):
    trial_report.write_report(tmp_path, CONFIGS["digits"][0], "fsg", 1, trials, smallest=smallest)
    found = (tmp_path / "tune.md").read_text()
    assert all(text in found for text in texts), found
    assert ("standard error" in found) == (len(trials) == 4)
    assert max(map(len, found.split("```")[0].rpartition("\n\nTrial")[2].splitlines())) <= 120
