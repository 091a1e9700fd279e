"""The report of polyp sizing: pooling, pairing, numbers against hand-worked ones, rendering, bad input."""

import base64
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree

import numpy as np
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
from polyp_records import FOLDS, POLYPS, SIZES, make_run, save, study

from experiments.errors import run_main
from experiments.report import RecordsError, polyp_metrics, polyp_plots, summary_table, write_report
from experiments.report.__main__ import main
from experiments.report.polyp_metrics import Predictor
from experiments.report.polyp_predictions import Predictions, align, pool
from experiments.report.polyp_tables import Column, cell
from experiments.report.results_file import baseline_of, load
from fsg_jax.endoscopy import sizing
from fsg_jax.endoscopy.sizing import Interval

FAST = 40
RGB, BOTH = ["rgb"], ["rgb", "mask"]


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A study with a missing fold and an unfinished run; its folder, records and two pages."""
    folder = tmp_path_factory.mktemp("study")
    records = study(folder, {"fsg_gr": [RGB, BOTH], "baseline": [RGB]})
    records = [r for r in records if (r["arm"], r["streams"], r["fold"]) != ("fsg_gr", BOTH, 2)]
    save(folder, [*records, {"arm": "fsg_gr", "streams": BOTH, "fold": 2, "seed": 0, "status": "failed"}])
    markdown, html = write_report(folder, out=folder / "out", resamples=FAST)
    return folder, records, markdown.read_text(), html.read_text()


@pytest.fixture
def small(tmp_path):
    """One arm, all folds."""
    return tmp_path, study(tmp_path, {"baseline": [RGB]})


def arm(name: str, data: Predictions) -> Predictor:
    return Predictor(name, data, data.outputs)


def test_tables_have_the_pooled_numbers(reported):
    folder, records, markdown, html = reported
    parts = [pq.read_table(folder / r["predictions"]) for r in records if r["arm"] == "baseline"]
    rows = [row for part in parts for row in part.to_pylist()]
    predicted = {}
    for row in rows:
        predicted.setdefault(row["polyp_id"], []).append(row["predicted_mm"])
    errors = [abs(np.median(predicted[f"case{k + 1}"]) - SIZES[k]) for k in range(POLYPS)]
    per_frame = np.mean([abs(row["predicted_mm"] - row["size_mm"]) for row in rows])
    for text in (markdown, html):
        assert f"{np.mean(errors):.2f} [" in text
        assert f"{per_frame:.2f} [" in text
        assert "Spearman" in text
    line = next(line for line in markdown.splitlines() if line.startswith("| baseline · rgb | 18 |"))
    assert f"| {np.mean(errors):.2f} [" in line


def test_page_says_what_it_shows(reported):
    _, _, markdown, html = reported
    for text in (markdown, html):
        assert "synthetic: these polyps were rendered by a program" in text
        assert "8 finished runs of 3 arms over folds 0, 1, 2, seed 0; 18 test polyps" in text
        assert "fsg_gr · rgb + mask: no finished run of fold 2 of 3" in text
        assert "fsg_gr · rgb + mask fold 2 seed 0 (failed)" in text
        assert "The mean size and box area baselines are fitted" in text
        assert "unreadable image" in text
        assert "2 (24)" in text
        assert "abc123" in text
        assert "model.gates" in text
        assert "the fold of the run" in text
        for scheme in ("tri_class", "binary_10", "binary_5"):
            assert scheme in text
    order = [line.split(" |")[0][2:] for line in markdown.split("### Per polyp")[1].splitlines()[4:9]]
    assert order == ["baseline · rgb", "fsg_gr · rgb", "fsg_gr · rgb + mask", "mean size", "box area"]


def test_differences_are_to_the_baseline_of_the_same_streams_and_to_the_baselines(reported):
    _, _, markdown, _ = reported
    section = markdown.split("## Differences")[1].split("## Size classes")[0]
    pairs = [
        tuple(line.split(" | ")[:2]) for line in section.splitlines() if line.startswith("| ") and "---" not in line
    ]
    assert pairs[1:] == [
        ("| baseline · rgb", "mean size"),
        ("| baseline · rgb", "box area"),
        ("| fsg_gr · rgb", "baseline · rgb"),
        ("| fsg_gr · rgb", "mean size"),
        ("| fsg_gr · rgb", "box area"),
        ("| fsg_gr · rgb + mask", "mean size"),
        ("| fsg_gr · rgb + mask", "box area"),
    ]


def test_html_is_self_contained(reported):
    _, _, _, html = reported
    sources = re.findall(r'src="([^"]*)"', html)
    # Forest, 2 figures and 3 matrices per arm, 6 strips, 2 x 2 panels, 3 curves, 4 histograms, 2 heatmaps.
    assert len(sources) == 1 + 3 * (2 + 3) + 6 + 4 + 3 + 4 + 2
    for source in sources:
        kind, _, data = source.partition(",")
        content = base64.b64decode(data)
        if kind == "data:image/svg+xml;base64":
            assert ElementTree.fromstring(content).tag.endswith("svg")
        else:
            assert kind == "data:image/png;base64"
            assert content.startswith(b"\x89PNG")
    assert not re.search(r"https?://|<link|<script|url\(|@import", html)


@pytest.mark.slow
def test_report_does_not_depend_on_the_order_of_runs(tmp_path, reported):
    folder, records, markdown, html = reported
    shutil.copytree(folder / "runs", tmp_path / "runs")
    mixed = sorted(records, key=lambda r: (r["streams"] != RGB, r["fold"] % 2, r["arm"]))
    failed = {"arm": "fsg_gr", "streams": BOTH, "fold": 2, "seed": 0, "status": "failed"}
    again = write_report(save(tmp_path, [failed, *mixed]), resamples=FAST)
    assert [path.read_text() for path in again] == [markdown, html]


def test_classification_has_no_regression_plots(tmp_path):
    study(tmp_path, {"baseline": [RGB], "fsg": [RGB]}, scheme=sizing.TRI_CLASS)
    markdown, html = (path.read_text() for path in write_report(tmp_path, resamples=FAST))
    for text in (markdown, html):
        assert "MAE" not in text
        assert "binary_10" not in text
        assert "tri_class: diminutive, small, large" in text
        assert "Above 0 the first is better." in text
        assert "box area" in text
    assert "Bland" not in html
    sources = re.findall(r'src="', html)
    # Forest, a matrix per arm, strips, a pair of panels, curves, histograms, a heatmap.
    assert len(sources) == 1 + 2 + 6 + 2 + 3 + 4 + 1


def test_the_class_of_a_polyp_is_that_of_its_mean_probability(tmp_path):
    records = study(tmp_path, {"fsg": [RGB]}, scheme=sizing.TRI_CLASS)
    data = pool(tmp_path, records)
    one = arm("fsg", data)
    rows = polyp_metrics.classes(one, "polyp", sizing.TRI_CLASS)
    shown = data.take(data["polyp"] == rows.polyp[0])
    first = np.argmax([shown[name].mean() for name in sizing.TRI_CLASS.columns])
    assert rows.predicted[0] == first
    assert len(rows.polyp) == POLYPS
    assert len(polyp_metrics.classes(one, "frame", sizing.TRI_CLASS).polyp) == len(data["polyp"])


@pytest.mark.slow
def test_seeds_are_pooled_and_polyps_stay_the_clusters(tmp_path):
    records = [make_run(tmp_path, "fsg", RGB, fold, seed=seed) for fold in range(FOLDS) for seed in range(2)]
    data = pool(tmp_path, records)
    rows = polyp_metrics.predicted(arm("fsg", data), "polyp")
    assert len(rows.polyp) == 2 * POLYPS
    assert len(np.unique(rows.polyp)) == POLYPS
    one = polyp_metrics.predicted(arm("fsg", data.take(data["seed"] == 1)), "polyp")
    np.testing.assert_allclose(rows.predicted[POLYPS:], one.predicted)
    markdown, _ = write_report(save(tmp_path, records), resamples=FAST)
    assert "| fsg · rgb | 18 |" in markdown.read_text()


def test_pairs_match_frames_whatever_their_order(tmp_path):
    records = {arm: [make_run(tmp_path, arm, RGB, fold) for fold in range(FOLDS)] for arm in ("baseline", "fsg")}
    one, other = (pool(tmp_path, runs) for runs in records.values())
    shuffled = other.take(np.random.default_rng(0).permutation(len(other["polyp"]))[20:])
    left, right = align(one, shuffled)
    assert left.keys() == right.keys()
    assert len(left["polyp"]) == len(other["polyp"]) - 20
    found = polyp_metrics.difference(arm("fsg", other), arm("baseline", one), "frame", None, FAST)
    mae = [np.abs(data["predicted_mm"] - data["size_mm"]).mean() for data in (other, one)]
    assert found["mae"].value == pytest.approx(mae[0] - mae[1])
    first, second = other.take(other["polyp"] == "phantom/case1"), one.take(one["polyp"] == "phantom/case2")
    assert polyp_metrics.difference(arm("x", first), arm("y", second), "frame", None, FAST) == {}


def test_predictions_may_be_csv(small):
    folder, records = small
    before = pool(folder, records)
    for record in records:
        table = pq.read_table(folder / record["predictions"])
        record["predictions"] = record["predictions"].replace(".parquet", ".csv")
        csv.write_csv(table, folder / record["predictions"])
    after = pool(folder, records)
    assert after.keys() == before.keys()
    np.testing.assert_allclose(after["predicted_mm"], before["predicted_mm"])


def test_without_baselines_and_panels_and_gates(small):
    folder, records = small
    for record in records:
        table = pq.read_table(folder / record["predictions"])
        pq.write_table(table.drop_columns(["baseline_mean_mm", "baseline_box_area_mm"]), folder / record["predictions"])
        record |= {"synthetic": False, "panels": [], "history": []}
    _, html = write_report(save(folder, records), resamples=FAST)
    text = html.read_text()
    assert "The predictions hold no baselines." in text
    assert "Not available: they need a baseline arm" in text
    assert "No run has recorded panels." in text
    assert "No arm has recorded gate values." in text
    assert "rendered by a program" not in text


def test_unverified_files_are_named(small):
    folder, records = small
    records[1]["data"] = records[1]["data"] | {"unverified": ["index/<b>sun"]}
    records[0]["data"] = records[0]["data"] | {"unverified": []}
    markdown, html = (path.read_text() for path in write_report(save(folder, records), resamples=FAST))
    assert "Without a seal, so that damage or an edit would not be noticed: index/&lt;b>sun." in markdown
    assert "index/&lt;b&gt;sun." in html
    assert "| unverified | none |" in markdown


def test_panels_that_cannot_be_read_are_reported(small):
    folder, records = small
    panels = records[0]["panels"]
    (folder / panels[0]).write_bytes(b"GIF89a")
    (folder / panels[1]).unlink()
    markdown, _ = write_report(folder, resamples=FAST)
    assert "panel0.png: the panel is not a PNG image." in markdown.read_text()
    assert "panel1.png: the panel cannot be read" in markdown.read_text()


def test_arms_and_their_baselines(reported):
    folder, *_ = reported
    arms = load(folder).arms
    assert list(arms) == ["baseline · rgb", "fsg_gr · rgb", "fsg_gr · rgb + mask"]
    assert [baseline_of(name, arms) for name in arms] == [None, "baseline · rgb", None]


def test_limits_of_agreement_by_hand(small):
    data = pool(*small)
    keep = data.take(np.isin(data["polyp"], ["phantom/case1", "phantom/case4", "phantom/case7"]))
    difference = {"phantom/case1": 1.0, "phantom/case4": 2.0, "phantom/case7": 3.0}
    moved = keep["size_mm"] + np.array([difference[polyp] for polyp in keep["polyp"]])
    shifted = Predictions(keep.columns | {"predicted_mm": moved}, None)
    # Differences 1, 2, 3: mean 2, standard deviation 1.
    assert polyp_plots.limits_of_agreement(polyp_plots.per_polyp(shifted)) == pytest.approx((2, 0.04, 3.96))


def test_equal_sizes_are_spread_evenly():
    moved = polyp_plots.spread(np.array([5.0, 7.0, 5.0, 5.0]))
    np.testing.assert_allclose(moved, [4.88, 7.0, 5.0, 5.12])


def test_strips_are_in_the_natural_order_of_frames(small):
    data = pool(*small)
    shuffled = data.take(np.random.default_rng(0).permutation(len(data["polyp"])))
    values, size = polyp_plots.series(shuffled, "phantom/case10")
    rows = data["polyp"] == "phantom/case10"
    np.testing.assert_array_equal(values, data["predicted_mm"][rows])
    assert size == SIZES[9]
    chosen = polyp_plots.choose({"arm": data})
    assert chosen[0] == "phantom/case1"
    assert chosen[-1] == f"phantom/case{POLYPS}"
    assert len(chosen) == 6


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (Interval(0.5, 0.25, 0.75), "50.0 [25.0, 75.0]"),
        (Interval(0.5, np.nan, np.nan), "50.0"),
        (Interval(np.nan, np.nan, np.nan), "n/a"),
        (None, "n/a"),
    ],
)
def test_cells(found, text):
    assert cell(found, Column("", "{:.1f}", 100)) == text


def edit_predictions(folder, record, edit):
    path = folder / record["predictions"]
    pq.write_table(edit(pq.read_table(path)), path)


def replace_column(table, name, values):
    return table.set_column(table.column_names.index(name), name, [values])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda t: t.drop_columns(["size_mm"]),
            r"predictions\.parquet: expected the columns \['size_mm'\], found only ",
        ),
        (
            lambda t: t.drop_columns(["predicted_mm"]),
            r"predictions\.parquet: expected the columns \['predicted_mm'\], found only ",
        ),
        (lambda t: t.slice(0, 0), "expected predictions, found no rows"),
        (
            lambda t: replace_column(t, "predicted_mm", ["5.0"] * t.num_rows),
            r"predictions\.parquet: expected a table of predictions, found column predicted_mm of string",
        ),
        (lambda t: t.append_column("size_mm", t.column("fold")), r"predictions\.parquet: expected each column once"),
        (
            lambda t: replace_column(t, "predicted_mm", [float("nan"), *[5.0] * (t.num_rows - 1)]),
            r"predicted_mm: expected finite values, found 1 of 72 that are not",
        ),
        (
            lambda t: replace_column(t, "polyp_id", ["case2"] * t.num_rows),
            "expected 'phantom/case2' in one fold, found it in fold 1 and in fold 0",
        ),
    ],
)
def test_bad_predictions_name_the_file(small, edit, message):
    folder, records = small
    edit_predictions(folder, records[0], edit)
    with pytest.raises(RecordsError, match=message):
        write_report(folder, resamples=FAST)


def test_missing_and_broken_files(small, capsys):
    folder, records = small
    path = folder / records[1]["predictions"]
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(RecordsError, match=r"predictions\.parquet: expected a table of predictions, found "):
        write_report(folder)
    path.unlink()
    with pytest.raises(SystemExit, match="2"):
        run_main(lambda: main([str(folder)]))
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{path}: expected the predictions of a run, found no such file" in error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"streams": "rgb"}, "line 2, streams: expected list, found 'rgb'"),
        ({"fold": True}, "line 2, fold: expected int, found True"),
        ({"synthetic": None}, "line 2, synthetic: expected bool, found nothing"),
        ({"fold": -1}, "line 2, fold: expected an integer from 0 to 999, found -1"),
        ({"fold": 2**70}, "line 2, fold: expected an integer from 0 to 999"),
        ({"streams": ["rgb", 1]}, "line 2, streams: expected a list of texts"),
        ({"panels": [3]}, "line 2, panels: expected a list of paths"),
        ({"predictions": "a\nb"}, "line 2, predictions: expected a path on one line"),
        ({"test": {"mae": "1.5"}}, "line 2, test: expected numbers by name"),
        ({"shared": [1]}, "line 2, shared: expected numbers by name"),
        ({"data": {"dropped": "x"}}, r"line 2, data\.dropped: expected counts by reason"),
        ({"data": {"unverified": "x"}}, r"line 2, data\.unverified: expected a list of paths"),
        ({"split": {"num_folds": 2**70}}, r"line 2, split\.num_folds: expected an integer up to 1000"),
        ({"split": {"counts": {"a": 1}}}, r"line 2, split\.counts: expected a list"),
        ({"split": {"counts": [{"fold": 1}]}}, r"line 2, split\.counts: expected fold, size_group, polyps and frames"),
        ({"config": {"loss": {"clamp_mm": [1, "x"]}}}, r"line 2, config\.loss: expected clamp_mm with two numbers"),
        ({}, r"line 2: expected one finished run of baseline · rgb fold 0 seed 0, found another in .*, line 1"),
    ],
)
def test_bad_records_name_the_line(small, changes, message):
    folder, records = small
    save(folder, [records[0], records[0] | changes])
    with pytest.raises(RecordsError, match=message):
        load(folder)


def test_tasks_do_not_mix(tmp_path):
    records = [
        make_run(tmp_path, "baseline", RGB, 0),
        make_run(tmp_path, "fsg", RGB, 0, scheme=sizing.BINARY_10),
    ]
    with pytest.raises(RecordsError, match="expected one task, found binary_10, regression"):
        write_report(save(tmp_path, records))


def test_no_finished_run(tmp_path):
    (tmp_path / "results.jsonl").write_text(json.dumps({"status": "failed"}) + "\n")
    with pytest.raises(RecordsError, match=r"expected a finished run, found none \(1 unfinished\)"):
        write_report(tmp_path)
    with pytest.raises(ValueError, match="resamples: expected an integer >= 1, found 0"):
        write_report(tmp_path, resamples=0)


def test_command_prints_the_paths(small, capsys):
    folder, _ = small
    main([str(folder), "--out", str(folder / "out"), "--resamples", "20"])
    assert capsys.readouterr().out.split() == [str(folder / "out" / name) for name in ("report.md", "report.html")]


def test_summary_table_has_the_test_metrics_of_the_records(tmp_path):
    records = [make_run(tmp_path, arm, RGB, fold) for arm in ("fsg", "baseline") for fold in range(FOLDS)]
    for record in records[:FOLDS]:
        # Deviations from 3 are -1, 0, 1: variance 2 / 2, std 1.
        record["test"] = {"polyp_mae": 2.0 + record["fold"], "mae": 4.0}
    lines = summary_table([*records, {"status": "failed"}]).splitlines()
    assert lines[0] == "| arm | runs | test MAE per polyp, mm | test MAE per frame, mm |"
    assert lines[2:] == [
        "| baseline · rgb | 3 | n/a ± n/a | n/a ± n/a |",
        "| fsg · rgb | 3 | 3.00 ± 1.00 | 4.00 ± 0.00 |",
    ]
    for record in records:
        record["test"] = {"f1_macro": 0.5}
    assert "| baseline · rgb | 3 | 50.0 ± 0.0 |" in summary_table(records)
