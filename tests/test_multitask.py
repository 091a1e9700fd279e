"""Made-up tasks, heads of equal size as arms, the use of experts, and several questions about a polyp, end to end."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny

from experiments.cli import AblateArgs, parse
from experiments.config import change, check
from experiments.configs import CONFIGS
from experiments.errors import UserError
from experiments.head import Head, count, make_head
from experiments.report import RecordsError, write_report
from experiments.run_folder import seal
from experiments.synthetic_tasks import SyntheticTasks, make_tables
from fsg_jax.models.expert_usage import anomalies, expert_usage
from fsg_jax.models.experts import expert_head

SMALL = {"data.train": 192, "data.validation": 32, "data.test": 64, "train.epochs": 2, "train.batch_size": 64}
SMALL |= {"train.log_every": 3, "optimizer.warmup_epochs": 0.5}


@pytest.mark.parametrize("related", [0.0, 0.5, 0.9, 1.0])
def test_two_tasks_are_those_of_ma_et_al(related):
    config = SyntheticTasks(related=related, noise=0.0, train=4000, inputs=12, draw=3)
    tables = make_tables(config)
    assert tables.tasks == ("a1", "a2")
    assert tables.groups == {}
    x, ys = tables.train["x"], [tables.train[task] for task in tables.tasks]
    # Without sines each task is a direction; its cosine with the other one is that of the configuration.
    plain = make_tables(replace(config, sines=()))
    directions = [np.linalg.lstsq(plain.train["x"], plain.train[task], rcond=None)[0] for task in plain.tasks]
    cosine = directions[0] @ directions[1] / np.linalg.norm(directions[0]) / np.linalg.norm(directions[1])
    np.testing.assert_allclose(cosine, related, atol=0.01)
    z = np.float64(x) @ (directions[0] / np.linalg.norm(directions[0]))
    wanted = z + sum(np.sin(a * z + b) for a, b in config.sines)
    np.testing.assert_allclose(ys[0], (wanted - wanted.mean()) / wanted.std(), atol=0.02)
    for y in ys:
        np.testing.assert_allclose((y.mean(), y.std()), (0, 1), atol=1e-5)


@pytest.mark.parametrize(
    ("value", "fits"), [(0.0, True), (1.0, True), (1.01, False), (-0.1, False), (float("nan"), False)]
)
def test_cosines_are_from_0_to_1(value, fits):
    experiment = change(CONFIGS["multitask_synthetic"][0], {"data.related": value})
    if fits:
        check(experiment)
    else:
        with pytest.raises(ValueError, match=r"data\.related: expected a number in \[0, 1\], found"):
            check(experiment)


def test_labels_are_missing_in_training_alone():
    config = CONFIGS["multitask_groups"][0].data
    tables = make_tables(replace(config, train=5000, validation=50, test=50))
    shares = [np.isfinite(tables.train[task]).mean() for task in tables.tasks]
    np.testing.assert_allclose(shares, config.labelled, atol=0.01)
    assert all(np.isfinite(part[task]).all() for part in tables[1:3] for task in tables.tasks)
    assert tables.groups == {"group_a": ("a1", "a2", "a3"), "group_b": ("b1", "b2", "b3")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"related": 0.0, "correlation": 0.9, "groups": (2, 2)}, "data.related, data.correlation: expected cosines of"),
        ({"labelled": (0.5,)}, "data.labelled: expected none, or 2 shares"),
        ({"inputs": 1}, "data.inputs: expected at least the number of tasks, 2, found 1"),
    ],
)
def test_tasks_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        make_tables(SyntheticTasks(**options))


@pytest.mark.slow
def test_all_heads_of_a_configuration_have_as_many_parameters():
    experiment, _ = CONFIGS["multitask_groups"]
    tables = make_tables(experiment.data)
    for arm in (None, *experiment.added_arms[::3]):
        own = change(experiment, dict(arm.overrides) if arm else {}).model
        found = count(make_head(own, dict.fromkeys(tables.tasks, 1), tables.groups, experiment.data.inputs), 100)
        assert abs(found / experiment.model.parameters - 1) < 0.05, arm


def test_a_number_of_parameters_that_no_width_has_is_an_error():
    with pytest.raises(ValueError, match=r"parameters of the head mmoe: expected 10 within 5 %, found .* at width"):
        make_head(Head("mmoe", parameters=10), {"a": 1}, {}, 100)


@pytest.mark.slow
def test_an_ablation_of_heads_pairs_draws_and_shows_the_experts(tmp_path):
    experiment = change(CONFIGS["multitask_groups"][0], {**SMALL, "model.parameters": 12_000})
    arms = ("baseline", "home", "home_routed")
    records = tiny.ablation(experiment, arms, 1, tmp_path, folds=(0, 1))
    assert [(r["arm"], r["fold"], r["config"]["data"]["draw"]) for r in records] == [
        (arm, fold, fold) for arm in sorted(arms, key=("baseline", *arms).index) for fold in (0, 1)
    ]
    paths = write_report(tmp_path)
    text = paths[0].read_text()
    for line in ("## Differences to the baseline", "| home_routed | 2 |", "## Experts", "weight of own experts, b3"):
        assert line in text
    assert "home, level 2" in paths[1].read_text()
    home = next(r for r in records if r["arm"] == "home")
    assert [len(level["weights"]) for level in home["experts"]] == [3, 6]
    for level in home["experts"]:
        np.testing.assert_allclose(np.sum(level["weights"], 1), 1, atol=1e-3)
    before = (tmp_path / "results.jsonl").read_bytes()
    tiny.ablation(experiment, arms, 1, tmp_path, folds=(0, 1), resume=True)
    assert (tmp_path / "results.jsonl").read_bytes() == before
    broken = seal({**home, "experts": [{"gates": ["a"], "experts": ["b"], "weights": [[1, 2]]}]})
    (tmp_path / "results.jsonl").write_text(json.dumps(broken) + "\n")
    with pytest.raises(RecordsError, match="line 1, experts: expected gates, experts and their weights"):
        write_report(tmp_path)


def test_routing_by_tasks_needs_a_head(tmp_path):
    with pytest.raises(UserError, match=r"arm t: arm\.routing: expected none, joint or sequential without a head"):
        tiny.ablation(tiny.digits(), ("t",), 1, tmp_path / "out", add_arm=(("t", "arm.routing=tasks"),))


def test_streams_are_no_axis_of_made_up_tasks(tmp_path):
    args = parse(AblateArgs, "x", ["multitask_synthetic", "--out", str(tmp_path), "--streams", "rgb"])
    with pytest.raises(UserError, match="--streams: expected none, for multitask_synthetic has no streams"):
        args.experiment.variants(args.streams, args.folds)


def test_what_goes_wrong_with_experts_is_measured():
    head = expert_head("cgc", {"a": 1, "b": 1}, expert_width=2)
    assert head.expert_names == [["shared.0", "shared.1", "a.0", "b.0"]]
    gates = np.array([[[0.9, 0.1, 0.0, 0], [0.1, 0.1, 0, 0.8]]] * 4)
    activations = np.ones((4, 4, 2)) * np.array([1.0, 4.0, 2.0, 2.0])[None, :, None]
    activations[:, 0, 1] = 0
    (level,) = levels = expert_usage(head, {"level1": {"gates": (gates,), "activations": (activations,)}})
    np.testing.assert_allclose(level.weights, gates[0])
    np.testing.assert_allclose(level.zeros, [0.5, 0, 0, 0])
    np.testing.assert_allclose(level.scale, [0.5**0.5, 4, 2, 2])
    nats = [-sum(p * np.log(p) for p in row if p) for row in gates[0]]
    np.testing.assert_allclose(level.entropy, np.array(nats) / np.log([2, 3]))
    found = anomalies(head, levels)
    np.testing.assert_allclose(found["scale_ratio"], 4 / 0.5**0.5)
    np.testing.assert_allclose(found["occupied"], 0.9)
    np.testing.assert_allclose(found["own_weight_b"], 0.8 * 3)
    assert found["mostly_zero"] == 0
    with pytest.raises(ValueError, match=r"level1: expected gates \(examples, 2, 4\)"):
        expert_usage(head, {"level1": {"gates": gates[:, :1], "activations": activations}})
    with pytest.raises(ValueError, match="level1: expected gates"):
        expert_usage(head, {})


@pytest.mark.slow
def test_questions_about_polyps_with_missing_labels(tmp_path):
    from experiments.endoscopy.index import index_real_colon
    from experiments.endoscopy.phantom.phantom_plan import Config
    from experiments.endoscopy.phantom.phantom_set import make_phantom
    from experiments.report import polyp_tasks
    from fsg_jax.endoscopy.index.folds import make_folds
    from fsg_jax.endoscopy.index.schema import read_index
    from fsg_jax.endoscopy.index.split_files import write_folds

    raw = tmp_path / "raw"
    config = Config(raw, "real-colon", polyps=12, frames=3, width=96, height=80, workers=1, missing_histology=0.5)
    make_phantom(config, progress=False)
    index_real_colon(raw, tmp_path / "index", workers=1)
    write_folds(make_folds(read_index(tmp_path / "index")[0], 3), tmp_path / "splits.csv")
    values = {"data.index": (tmp_path / "index",), "data.splits": tmp_path / "splits.csv", "data.frame_size": 32}
    values |= {"data.input_size": 32, "data.frames_per_polyp": 2, "train.epochs": 2, "train.batch_size": 4}
    values |= {"optimizer.warmup_epochs": 0.5, "model.width": 2, "head.parameters": 3000}
    experiment = change(CONFIGS["polyp_tasks"][0], values)
    records = tiny.ablation(experiment, ("baseline", "home"), 1, tmp_path / "runs")
    assert len(records) == 6
    for record in records:
        assert 0 < record["labelled"]["histology"]["train"] < record["labelled"]["size"]["train"]
        assert np.isfinite([v for v in record["test"].values()]).all()
        tasks = {task: row["classes"] for task, row in record["tasks"].items()}
        for task, found in polyp_tasks.answers(tmp_path / "runs", [record], tasks).items():  # as the run had it
            np.testing.assert_allclose(found.errors.mean(), record["test"][record["tasks"][task]["metric"]], rtol=1e-5)
    text = write_report(tmp_path / "runs", resamples=50)[0].read_text()
    assert "| home · rgb | 3 |" in text.split("## Differences to the baseline")[1]
    for line in ("SYNTHETIC DATA", "| guess |", "histology, balanced accuracy in %", "| size | "):
        assert line in text
    (tmp_path / "runs" / records[0]["predictions"]).write_bytes(b"PAR1 no")
    with pytest.raises(RecordsError, match=r"predictions.parquet: expected a table of predictions of size"):
        write_report(tmp_path / "runs", resamples=50)
