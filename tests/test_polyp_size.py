"""Polyp sizing end to end on a small phantom: both layouts, damaged files, resume, every target and stream."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny

from experiments import tune
from experiments.ablate import schedule
from experiments.cli import AblateArgs, TuneArgs, parse
from experiments.config import change
from experiments.configs import CONFIGS
from experiments.endoscopy import cohort as data
from experiments.endoscopy.index import index_real_colon, index_sun
from experiments.endoscopy.input_panels import write_panels
from experiments.endoscopy.phantom.phantom_plan import Config
from experiments.endoscopy.phantom.phantom_set import make_phantom
from experiments.endoscopy.polyp_config import MultiStream, PolypExperiment
from experiments.errors import UserError
from experiments.stepper import Streamed
from experiments.task import make_task
from experiments.train import train
from fsg_jax.endoscopy.frames.frame_cache import build_cache
from fsg_jax.endoscopy.frames.source import FrameSource
from fsg_jax.endoscopy.index.folds import make_folds
from fsg_jax.endoscopy.index.schema import read_index
from fsg_jax.endoscopy.index.split_files import write_folds

VIT = {"backbone": "vit_tiny", "patch_size": 16, "depth": 1, "hidden": 4}
RESNET = {"backbone": "resnet18", "patch_size": None, "depth": None, "width": 2}
LAYOUTS = {"real-colon": index_real_colon, "sun": index_sun}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A phantom of 9 polyps with 3 frames each, some more of them damaged, indexed and dealt to 3 folds."""
    made = {}
    for layout, index in LAYOUTS.items():
        home = made[layout] = tmp_path_factory.mktemp(layout)
        config = Config(home / "raw", layout, polyps=9, frames=3, width=96, height=80, broken=12, workers=1)
        make_phantom(config, progress=False)
        index(home / "raw", home / "index", workers=1)
        table, _ = read_index(home / "index")
        write_folds(make_folds(table, 3), home / "splits.csv")
    return made


def experiment(home: Path, **parts) -> PolypExperiment:
    small = CONFIGS["polyp_phantom"][0]
    assert isinstance(small, PolypExperiment)
    paths = {"index": (home / "index",), "splits": home / "splits.csv", "depth_root": home / "raw" / "depth"}
    sizes = {"frame_size": 32, "input_size": 32, "frames_per_polyp": 2}
    small = replace(small, data=replace(small.data, **(paths | sizes | parts.pop("data", {}))))
    train_part = {"epochs": 2, "batch_size": 3, "eval_batch_size": 4} | parts.pop("train", {})
    small = replace(small, train=replace(small.train, **train_part))
    small = replace(small, optimizer=replace(small.optimizer, warmup_epochs=0.5))
    model = MultiStream(**(VIT | parts.pop("model", {})))
    return replace(small, model=model, **parts)


@pytest.mark.slow
def test_both_layouts_give_the_same_run(folders, tmp_path):
    records = {k: train(experiment(v), "fsg_gr", 0, tmp_path / k) for k, v in folders.items()}
    one, other = records.values()
    assert one["test"] == other["test"]
    assert one["gates"] == other["gates"]
    assert one["synthetic"]
    assert (one["data"]["datasets"], other["data"]["datasets"]) == (["real_colon"], ["sun"])
    assert sum(one["data"]["dropped"]["real_colon"].values()) == 12
    assert one["num_polyps"] == {"train": 3, "validation": 3, "test": 3}
    tables = [pq.read_table(tmp_path / k / records[k]["predictions"]) for k in folders]
    assert tables[0].column("predicted_mm").equals(tables[1].column("predicted_mm"))
    assert tables[0].num_rows == one["num_frames"]["test"] == 9
    assert {"baseline_mean_mm", "baseline_box_area_mm", "fold"} <= set(tables[0].column_names)
    panels = [tmp_path / "sun" / panel for panel in other["panels"]]
    assert panels
    assert all(panel.stat().st_size > 1000 for panel in panels)


def test_damaged_frames_are_dropped_and_counted(folders):
    for home in folders.values():
        summary = json.loads((home / "index" / "summary.json").read_text())
        assert sum(summary["dropped"].values()) == 12
        assert summary["rows"] == 27


@pytest.mark.slow
@pytest.mark.parametrize("target", ["binary_10", "binary_5", "tri_class", "ordinal"])
def test_classes_can_be_predicted(folders, tmp_path, target):
    record = train(experiment(folders["sun"], target=target), "fsg", 0, tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / record["predictions"])
    shares = np.stack([table.column(name).to_numpy() for name in table.column_names if name.startswith("p_")])
    np.testing.assert_allclose(shares.sum(0), 1, rtol=1e-5)
    assert {"f1_weighted", "f1_macro", "polyp_balanced_accuracy"} <= record["test"].keys()


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        RESNET | {"streams": ("rgb", "mask", "depth")},
        {"streams": ("mask",), "hidden": 0},
    ],
)
def test_streams_and_backbones(folders, tmp_path, model):
    record = train(experiment(folders["sun"], model=model), "fsg_joint", 0, tmp_path / "out")
    assert record["streams"] == list(model["streams"])
    assert np.isfinite(record["test"]["polyp_mae"])


@pytest.mark.slow
def test_a_run_is_resumed_with_the_same_batches(folders, tmp_path):
    whole = experiment(folders["sun"], train={"epochs": 2, "checkpoint_every": 1})
    expected = train(whole, "baseline", 0, tmp_path / "whole")
    out = tmp_path / "cut"
    task = make_task(whole, "baseline")
    cohort, source = data.load_cohort(whole.data), data.open_source(whole.data, False)
    order = partial(data.train_order, cohort.polyps, cohort.digest, 2, 3)
    streamed = Streamed(order, partial(data.read_rows, source))
    loader = streamed.loader(0, 0)
    assert loader.steps_per_epoch == task.steps_per_epoch == 2
    first, late = iter(loader), iter(streamed.loader(0, 3))
    batches = [next(first) for _ in range(4)]
    np.testing.assert_array_equal(batches[3]["frame"], next(late)["frame"])
    first.close()
    late.close()
    (out / "checkpoints").mkdir(parents=True)
    for name in ("config.json", "steps.jsonl", "epochs.jsonl"):
        (out / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    newest = max((tmp_path / "whole" / "checkpoints").iterdir(), key=lambda p: int(p.name) if p.name.isdigit() else -1)
    before = [p for p in newest.parent.iterdir() if p.name.isdigit() and int(p.name) < int(newest.name)]
    assert before
    for path in before:
        path.rename(out / "checkpoints" / path.name)
    resumed = train(whole, "baseline", 0, out, resume=True)
    assert resumed["test"] == expected["test"]
    assert resumed["history"] == expected["history"]


@pytest.mark.slow
def test_a_run_is_not_resumed_with_other_folds(folders, tmp_path):
    (tmp_path / "splits.csv").write_bytes((folders["sun"] / "splits.csv").read_bytes())
    config = experiment(folders["sun"], data={"splits": tmp_path / "splits.csv"}, train={"epochs": 1})
    train(config, "baseline", 0, tmp_path / "out")
    (tmp_path / "out" / "result.json").unlink()
    table, _ = read_index(folders["sun"] / "index")
    write_folds(make_folds(table, 3, seed=2), tmp_path / "splits.csv")
    data.load_cohort.cache_clear()
    make_task.cache_clear()
    with pytest.raises(UserError, match="was trained on other data or in another order: rows: "):
        train(config, "baseline", 0, tmp_path / "out", resume=True)


def test_one_cache_serves_every_set_of_streams_and_folds_without_some_polyps(folders, tmp_path):
    home = folders["sun"]
    table, roots = read_index(home / "index")
    build_cache(FrameSource(table, roots, 32, depth_root=home / "raw" / "depth"), tmp_path / "cache")
    lines = (home / "splits.csv").read_text().splitlines()
    (tmp_path / "splits.csv").write_text("\n".join(line for line in lines if not line.startswith("sun,1,")) + "\n")
    config = experiment(home, data={"cache": tmp_path / "cache", "splits": tmp_path / "splits.csv"})
    cohort = data.load_cohort(config.data)
    assert cohort.info["data"]["boxes without a fold"] == 3
    for depth in (False, True):
        cached, plain = data.open_source(config.data, depth), data.open_source(replace(config.data, cache=None), depth)
        for row in (int(cohort.test[0]), int(cohort.polyps[0][0])):
            for name, value in plain[row].items():
                np.testing.assert_array_equal(cached[row][name], value)


@pytest.mark.slow
def test_arms_start_alike_with_gates_for_streams_in_use_only(folders):
    config = experiment(folders["sun"], model={"streams": ("rgb", "depth")})
    base, gated = (make_task(config, arm).init(jax.random.key(0)) for arm in ("baseline", "fsg_gr"))
    jax.tree.map(np.testing.assert_array_equal, base.params, gated.params)
    assert set(gated.gates) == {"rgb", "depth", "gate_embedding", "gate_hidden"}


@pytest.mark.slow
def test_panels_show_the_streams(folders, tmp_path):
    config = experiment(folders["sun"], model={"streams": ("rgb", "mask", "depth")})
    source, table = data.open_source(config.data, True), data.load_cohort(config.data).table
    files = write_panels(source, table, np.array([0, 20]), config.data, config.model.streams, tmp_path)
    assert files == ["panels/0.png", "panels/1.png"]
    assert all((tmp_path / file).stat().st_size > 1000 for file in files)


def test_all_folds_arms_and_streams_are_planned(folders):
    config = experiment(folders["sun"])
    groups = list(schedule(config.variants(("rgb", "mask+depth"), ()), ("baseline", "fsg"), range(2), 1, Path("out")))
    paths = [path for group in groups for path in group.outs.values()]
    assert len(set(paths)) == len(paths) == 3 * 2 * 2 * 2
    assert paths[:5] == [
        *(
            Path(f"out/{streams}/{arm}/fold-0-seed-0")
            for streams in ("rgb", "mask+depth")
            for arm in ("baseline", "fsg")
        ),
        Path("out/rgb/baseline/fold-0-seed-1"),
    ]
    assert {group.experiment.data.fold for group in groups[:8]} == {0}
    assert groups[2].experiment.model.streams == ("mask", "depth")
    (only,) = config.variants((), (1,))
    assert [(v.experiment.data.fold, v.folder, v.prefix) for v in only] == [(1, "rgb", "fold-1-")]
    with pytest.raises(ValueError, match="unknown arm 'fgs'"):
        tiny.ablation(config, ("fgs",), 1, Path("out"))


def test_options_of_polyps():
    options = "--out x --streams rgb mask+depth --folds 0 2 --data.index a b --model.streams mask --train.epochs 3"
    args = parse(AblateArgs, "experiments.ablate", ["polyp_phantom", *options.split()])
    assert (args.streams, args.folds, args.seeds, args.experiment.default_seeds) == (
        ("rgb", "mask+depth"),
        (0, 2),
        None,
        1,
    )
    assert isinstance(args.experiment, PolypExperiment)
    assert args.experiment.data.index == (Path("a"), Path("b"))


@pytest.mark.slow
def test_polyps_are_ablated_and_searched(folders, tmp_path):
    """The front door: the same commands as for images."""
    config = change(experiment(folders["sun"]), {"train.epochs": 1, "optimizer.warmup_epochs": 0.0})
    (record,) = tiny.ablation(config, ("fsg_gr",), 1, tmp_path / "ablation", streams=("mask",), folds=(2,))
    assert (record["streams"], record["fold"], record["seed"]) == (["mask"], 2, 0)
    assert record["predictions"] == "mask/fsg_gr/fold-2-seed-0/predictions.parquet"
    assert (tmp_path / "ablation" / record["predictions"]).exists()
    space = ("train.batch_size=3,4",)
    masks = change(config, {"model.streams": ("mask",)})  # whose programs are compiled by now
    search = TuneArgs(masks, tmp_path / "search", "fsg_gr", trials=1, space=space, only=("train.batch_size",))
    (trial,) = tune.tune(search)
    assert (trial["state"], trial["metric"]) == ("finished", "loss")
    assert "The test split was not read" in (tmp_path / "search" / "tune.md").read_text()
    with pytest.raises(UserError, match=r"--space loss\.gamma: cannot be searched"):
        tune.tune(replace(search, space=("loss.gamma=1,2",), only=("loss.gamma",), resume=True))


def test_what_cannot_start_leaves_nothing(folders, tmp_path):
    good = experiment(folders["sun"])
    bad = {
        "data.index and data.splits: expected index folders": {"index": ()},
        "none.csv": {"splits": tmp_path / "none.csv"},
        "fold: expected an integer from 0 to 2, found 3": {"fold": 3},
    }
    for message, paths in bad.items():
        with pytest.raises((ValueError, OSError), match=message):
            train(replace(good, data=replace(good.data, **paths)), "baseline", 0, tmp_path / "out")
    depth = replace(good, data=replace(good.data, depth_root=None), model=replace(good.model, streams=("depth",)))
    with pytest.raises(ValueError, match=r"data\.depth_root: expected depth maps"):
        train(depth, "baseline", 0, tmp_path / "out")
    with pytest.raises(ValueError, match=r"model\.streams: expected one of 'rgb', 'mask', 'depth', found 'nbi'"):
        train(replace(good, model=replace(good.model, streams=("nbi",))), "baseline", 0, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_commands_as_a_user_types_them(tmp_path):
    commands = (
        "phantom --out raw --layout sun --polyps 9 --frames 2 --width 96 --height 80",
        "index sun raw --out index",
        "split index --out splits.csv --folds 3",
        "cache index --out cache --size 32 --depth-root raw/depth",
        "ablate polyp_phantom --data.index index --data.splits splits.csv --data.depth-root raw/depth "
        "--data.cache cache --data.frame-size 32 --data.input-size 32 --model.width 2 --train.epochs 1 "
        "--optimizer.warmup-epochs 0 --train.batch-size 3 --streams rgb+depth --folds 0 --arms baseline fsg_gr "
        "--out runs --add-arm narrow from=fsg_gr model.hidden=8 loss.gamma=2.0",
        "report runs",
    )
    root = str(Path(__file__).parent.parent)
    for command in commands:
        line = [sys.executable, "-m", f"experiments.{command.split()[0]}", *command.split()[1:]]
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": root})
        assert done.returncode == 0, done.stderr
    page = (tmp_path / "runs" / "report.html").read_text()
    assert "synthetic" in page.lower()
    assert all(
        text in page for text in ("narrow · rgb + depth", '<th scope="row">loss.gamma</th><td>1.0</td><td>1.0</td>')
    )
    assert "Arm narrow · rgb + depth, arrays against those of baseline · rgb + depth: " in page
