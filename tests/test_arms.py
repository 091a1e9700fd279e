"""Arms as overrides: what they resolve to, what is refused, where they share weights, and runs of added ones."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import pytest
import tiny

from experiments import ablate, tune
from experiments.arms import add_arm
from experiments.cli import AblateArgs, TrainArgs, TuneArgs, overrides, parse, with_added_arms
from experiments.config import ARMS, Arm, BaseExperiment, describe, flatten, in_arm
from experiments.configs import CONFIGS
from experiments.errors import UserError, run_main
from experiments.report import trials as trial_report
from experiments.report import write_report
from experiments.report.initial_weights import sentences
from experiments.run_folder import RunFolder
from experiments.task import make_task
from fsg_jax.training.checkpoint_files import checksums

DIGITS, POLYPS = CONFIGS["digits"][0], CONFIGS["polyp_size"][0]
RECORDED = {
    "baseline": ("none", "sigmoid", "none", False),
    "fsg": ("static", "sigmoid", "none", False),
    "fsg_joint": ("static", "sigmoid", "joint", False),
    "fsg_gr": ("static", "sigmoid", "sequential", False),
    "se": ("squeeze_excite", "sigmoid", "none", False),
    "l0": ("static", "hard_concrete", "none", True),
}
"""Gate, kind, routing and l0_penalty of the arms in records since the first."""


def test_the_arms_are_what_they_were():
    assert list(ARMS) == list(RECORDED)
    plain = {k: v for k, v in describe(DIGITS).items() if k != "seed"}
    for name, (gate, kind, routing, penalty) in RECORDED.items():
        config = describe(DIGITS, name, 3)
        arm = {"name": name, "gate": gate, "kind": kind, "routing": routing, "l0_penalty": penalty}
        assert config == plain | {"arm": arm, "seed": 3}
        assert list(config["arm"]) == list(arm)
    assert list(plain) == ["name", "data", "model", "gate", "optimizer", "train"]


def differing(experiment: BaseExperiment, arm: str, other: str = "baseline") -> dict[str, object]:
    """Keys of the record of `arm` that differ from those of `other`, but for the name."""
    one, two = (flatten(describe(experiment, name)) for name in (arm, other))
    return {key: one[key] for key in one if one[key] != two[key] and key != "arm.name"}


@pytest.mark.parametrize(
    ("experiment", "words", "expected"),
    [
        (DIGITS, "optimizer.learning-rate=1e-3", {"optimizer.learning_rate": 1e-3}),
        (DIGITS, "optimizer.learning_rate=1", {"optimizer.learning_rate": 1.0}),
        (DIGITS, "from=se data.augment=crop,flip", {"arm.gate": "squeeze_excite", "data.augment": ["crop", "flip"]}),
        (DIGITS, "train.ema_decay=0.9 train.epochs=3", {"train.ema_decay": 0.9, "train.epochs": 3}),
        (DIGITS, "train.epochs=1 optimizer.warmup_epochs=0", {"train.epochs": 1, "optimizer.warmup_epochs": 0.0}),
        (
            DIGITS,
            "from=fsg_gr gate.every=4 model.gate_placement=block",
            {"arm.gate": "static", "arm.routing": "sequential", "gate.every": 4, "model.gate_placement": "block"},
        ),
        (
            DIGITS,
            "from=l0 arm.routing=joint arm.l0_penalty=False",
            {"arm.gate": "static", "arm.kind": "hard_concrete", "arm.routing": "joint"},
        ),
        (POLYPS, "data.jitter=0,0,0,0.1 optimizer.clip=None", {"data.jitter": [0, 0, 0, 0.1], "optimizer.clip": None}),
        (POLYPS, "loss.gamma=2 model.width=32", {"loss.gamma": 2.0, "model.width": 32}),
    ],
)
def test_an_added_arm_differs_in_its_keys_alone(experiment, words, expected):
    changed = add_arm(experiment, "mine", *words.split())
    assert differing(changed, "mine") == expected
    assert describe(changed) == describe(experiment)
    assert describe(changed, "fsg", 0) == describe(experiment, "fsg", 0)
    command = overrides(changed).split()
    assert command[:2] == ["--add-arm", "mine"]
    again = with_added_arms(parse(AblateArgs, "experiments.ablate", [experiment.name, "--out", "x", *command]))
    assert again.experiment == changed
    assert again.arms == ("baseline", "fsg", "fsg_gr", "mine")


def test_arms_build_on_added_ones():
    experiment = add_arm(
        add_arm(DIGITS, "slow", "from=fsg_gr", "gate.learning_rate=1e-3"), "rare", "from=slow", "gate.every=2"
    )
    assert differing(experiment, "rare", "slow") == {"gate.every": 2}
    assert in_arm(experiment, "rare").arm == Arm("rare", "static", routing="sequential")
    with pytest.raises(ValueError, match=r"unknown arm 'slo' \(did you mean 'slow'\?\); there are .*, rare, se, slow$"):
        in_arm(experiment, "slo")


KEY = "expected a key of the configuration, found none"
BAD_ARMS = [
    ("", "--add-arm : expected a new NAME of letters, digits, _ and -, then KEY=VALUE ..."),
    ("../x gate.every=2", "--add-arm ../x: expected a new NAME of letters, digits, _ and -, then KEY=VALUE ..."),
    ("report.md gate.every=2", "--add-arm report.md: expected a new NAME of letters"),
    ("fsg train.epochs=2", "--add-arm fsg: expected a new NAME of letters"),
    ("a", "--add-arm a: expected KEY=VALUE ..., every key once, found none"),
    ("a from=fsg", "--add-arm a: expected KEY=VALUE ..., every key once, found from=fsg"),
    ("a train.epochs", "--add-arm a: expected KEY=VALUE ..., every key once, found train.epochs"),
    ("a train.epochs=2 train.epochs=3", "every key once, found train.epochs=2 train.epochs=3"),
    ("a from=fgs train.epochs=2", "--add-arm a: from: expected one of 'baseline', 'fsg', "),
    ("a optimizer.lr=1", f"--add-arm a: optimizer.lr=1: {KEY} (did you mean 'optimizer.clip'?)"),
    ("a optimizer=1", f"--add-arm a: optimizer=1: {KEY}"),
    ("a arm.name=b", f"--add-arm a: arm.name=b: {KEY}"),
    ("a added_arms=b", f"--add-arm a: added_arms=b: {KEY}"),
    ("a seed=1", f"--add-arm a: seed=1: {KEY}"),
    ("a optimizer.learning_rate=high", "--add-arm a: optimizer.learning_rate: expected float, found 'high'"),
    ("a optimizer.learning_rate=", "--add-arm a: optimizer.learning_rate: expected float, found ''"),
    ("a optimizer.learning_rate=-1", "optimizer.learning_rate: expected a finite number >= 0, found -1.0"),
    ("a train.epochs=1.5", "--add-arm a: train.epochs: expected int, found 1.5"),
    ("a data.augment=crop,flop", "'mixup_or_cutmix', found 'flop' (did you mean 'flip'?)"),
    (
        "a arm.gate=dynamic",
        "--add-arm a: arm.gate: expected one of 'none', 'static', 'squeeze_excite', found 'dynamic'",
    ),
    ("a from=fsg arm.l0_penalty=yes", "--add-arm a: arm.l0_penalty: expected bool, found 'yes'"),
    ("a train.epochs=1", "--add-arm a: optimizer.warmup_epochs: expected less than train.epochs, 1, found 1.0"),
    (
        "a data.validation=100",
        "data.validation=100: cannot differ between arms; it does not change what is learned, or",
    ),
    ("a train.test_on=best", "train.test_on=best: cannot differ between arms"),
    ("a train.fsdp=2", "train.fsdp=2: cannot differ between arms"),
    (
        "a gate.init=he",
        "--add-arm a: gate.init: changes nothing; expected arm.gate=static too, or from=ARM, found neither",
    ),
    ("a model.gate_placement=block", "--add-arm a: model.gate_placement: changes nothing; expected arm.gate too"),
    ("a from=fsg gate.clip=1", "gate.clip: changes nothing; expected arm.routing=joint or sequential too, or from=ARM"),
    ("a from=fsg_joint gate.every=2", "gate.every: changes nothing; expected arm.routing=sequential too"),
    ("a from=fsg gate.l0_weight=1", "gate.l0_weight: changes nothing; expected arm.l0_penalty=True too"),
    ("a arm.routing=joint", "arm.gate: expected static for such arm.routing, kind or l0_penalty, found none"),
    ("a from=fsg arm.l0_penalty=True", "arm.kind: expected hard_concrete or straight_through for arm.l0_penalty"),
]


@pytest.mark.parametrize(("words", "message"), BAD_ARMS)
def test_bad_arm(tmp_path, capsys, words, message):
    args = parse(
        AblateArgs, "experiments.ablate", ["digits", "--out", str(tmp_path / "out"), "--add-arm", *words.split()]
    )
    with pytest.raises(SystemExit) as exited:
        run_main(lambda: ablate.ablate(args) and None)
    assert exited.value.code == 2
    line = capsys.readouterr().err
    assert message in line
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_bad_arm_of_polyps():
    for word, message in {
        "model.streams=mask": r"model\.streams=mask: cannot differ between arms; .* or has an option of the ablation",
        "target=ordinal": "target=ordinal: cannot differ between arms",
        "data.jitter=0,0,0": r"data\.jitter: expected 4 values, found \(0\.0, 0\.0, 0\.0\)",
    }.items():
        with pytest.raises(UserError, match=f"^--add-arm a: {message}"):
            add_arm(POLYPS, "a", word)


def test_what_the_model_refuses_names_the_arm(tmp_path):
    for words, message in (
        (("from=fsg", "arm.kind=sigmod"), "sigmod"),
        (("train.batch_size=999",), "train.batch_size"),
    ):
        with pytest.raises(UserError, match=rf"^arm mine: .*{message}"):
            tiny.ablation(tiny.digits(), (), 1, tmp_path / "out", add_arm=(("mine", *words),))
    assert not (tmp_path / "out").exists()


def test_a_run_and_a_search_take_the_added_arm_or_refuse(tmp_path):
    for kind, module in ((TrainArgs, "experiments.train"), (TuneArgs, "experiments.tune")):
        argv = ["digits", "--out", "x", "--add-arm", "wide", "model.width=32"]
        assert with_added_arms(parse(kind, module, [*argv, "--arm", "wide"])).arm == "wide"
        with pytest.raises(UserError, match="--add-arm wide: expected --arm wide too, found --arm baseline"):
            with_added_arms(parse(kind, module, argv))
    rate = "optimizer.learning_rate"
    args = TuneArgs(tiny.digits(), tmp_path / "out", "hot", add_arm=(("hot", f"{rate}=0.1"),), only=(rate,))
    with pytest.raises(UserError, match=rf"--space {rate}: the arm hot sets it; search the others with --only"):
        tune.tune(args)
    with pytest.raises(ValueError, match=r"unknown setting 'arm\.kind'"):
        tune.tune(replace(args, space=("arm.kind=sigmoid,relu",), only=("arm.kind",)))
    command = trial_report.command(add_arm(DIGITS, "wide", "model.width=32"), "wide", {"optimizer.momentum": 0.8})
    assert "--arms baseline wide --out" in command
    assert command.endswith("--optimizer.momentum 0.8 --add-arm wide model.width=32")


def test_an_added_arm_under_its_name_keeps_its_overrides(tmp_path):
    """The folders of the runs tell; nothing is trained here."""
    experiment = add_arm(tiny.digits(), "wide", "train.epochs=3")
    (tmp_path / "ablation.json").write_text(json.dumps(describe(experiment)))
    RunFolder(ablate.run_path(tmp_path, "wide", 1), describe(experiment, "wide", 1), resume=False).close()
    with pytest.raises(UserError, match=r"wide/seed-1 holds another run; .* differ in train\.epochs: 3 there, 4 now$"):
        tiny.ablation(tiny.digits(), (), 2, tmp_path, add_arm=(("wide", "train.epochs=4"),), resume=True)
    assert not (tmp_path / "wide" / "seed-0").exists()


def initial_weights(experiment: BaseExperiment, *arms: str) -> dict[str, list[dict]]:
    """Records by arm, with all that `sentences` reads."""
    found = {}
    for arm in arms:
        leaves = jax.tree_util.tree_leaves_with_path(make_task(experiment, arm).init(jax.random.key(0)).params)
        sums = checksums({jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves})
        found[arm] = [{"arm": arm, "seed": 0, "initial_weights": sums}]
    return found


@pytest.mark.slow
def test_weights_are_shared_wherever_the_trees_agree():
    experiment = add_arm(tiny.digits(), "deep", "model.depth=2")
    experiment = add_arm(experiment, "coarse", "model.patch_size=8", "from=fsg_gr")
    found = initial_weights(experiment, "baseline", "fsg_gr", "se", "deep", "coarse")
    assert list(sentences(found)) == [
        "Arm se, arrays against those of baseline: 20 equal; 8 more "
        "(blocks_0/gate1/fc1/bias, blocks_0/gate1/fc1/kernel, blocks_0/gate1/fc2/bias, ...).",
        "Arm deep, arrays against those of baseline: 20 equal; 12 more "
        "(blocks_1/attn/proj/bias, blocks_1/attn/proj/kernel, blocks_1/attn/qkv/bias, ...).",
        "Arm coarse, arrays against those of baseline: 17 equal; 2 of another shape "
        "(patch_embed/proj/kernel, pos_embed); 1 with other values (patch_embed/proj/bias).",
        "Equal for every seed in baseline, fsg_gr.",
    ]


@pytest.mark.slow
def test_a_resnet_shares_weights_but_for_its_width():
    experiment = tiny.shrunk("digits", Path())
    for name, words in {
        "block": "from=fsg model.gate_placement=block",
        "wide": "model.width=6",
        "big": "model.name=resnet34",
    }.items():
        experiment = add_arm(experiment, name, *words.split())
    lines = list(sentences(initial_weights(experiment, "baseline", "block", "wide", "big")))
    assert [line.partition(" (")[0] for line in lines] == [
        "Arm wide, arrays against those of baseline: 1 equal; 61 of another shape",
        "Arm big, arrays against those of baseline: 62 equal; 48 more",
        "Equal for every seed in baseline, block.",
    ]


def run(seed: int, weights: dict[str, str] | None, **fields: object) -> dict:
    return {"seed": seed, "initial_weights": weights, **fields}


def test_weights_are_compared_run_by_run_and_stream_by_stream():
    a, b = {"w": "float32[2]:00"}, {"w": "float32[2]:01"}
    control = [run(0, a), run(1, b)]
    assert list(sentences({"one": [run(0, None)], "two": [run(0, None)]})) == []
    assert list(sentences({"one": [{"seed": 0}], "two": [run(0, a)]})) == ["Arm two: not recorded for a seed of one."]
    assert list(sentences({"one": control, "two": [run(1, b), run(0, a)]})) == ["Equal for every seed in one, two."]
    (line,) = sentences({"one": control, "two": [run(0, a), run(1, a)]})
    assert line == "Arm two, arrays against those of one: 1 with other values (w)."
    (line,) = sentences({"one": control, "two": [run(0, {"w": "float32[2]:00", "x": "float32[]:02"})]})
    assert line == "Arm two, arrays against those of one: 1 equal; 1 more (x)."
    (line,) = sentences({"one": [run(0, a | {"x": "float32[]:02"})], "two": [run(0, a)]})
    assert line == "Arm two, arrays against those of one: 1 equal; 1 missing (x)."
    rgb = {f"{arm} · rgb": [run(0, a, streams=["rgb"], fold=0)] for arm in ("baseline", "fsg")}
    mask = {"baseline · mask": [run(0, b, streams=["mask"], fold=0)]}
    assert list(sentences(rgb | mask)) == ["Equal for every seed in baseline · rgb, fsg · rgb."]


@pytest.mark.slow
def test_an_arm_is_added_to_a_finished_ablation(tmp_path):
    experiment = tiny.digits()
    (before,) = tiny.ablation(experiment, ("baseline",), 1, tmp_path)
    rate = "optimizer.learning_rate"
    deep = ("deep", "from=fsg_gr", "model.depth=2", "train.epochs=3", f"{rate}=0.01")
    records = tiny.ablation(experiment, ("baseline",), 1, tmp_path, add_arm=(deep,), resume=True)
    assert records[0] == before
    assert (records[1]["arm"], len(records[1]["history"])) == ("deep", 3)
    assert records[1]["config"] == describe(add_arm(experiment, *deep), "deep", 0)
    assert tiny.ablation(experiment, ("baseline",), 1, tmp_path, add_arm=(deep,), resume=True) == records
    with pytest.raises(
        UserError, match=rf"deep/seed-0 holds another run; .* differ in {rate}: 0\.01 there, 0\.02 now$"
    ):
        tiny.ablation(experiment, (), 1, tmp_path, add_arm=((*deep[:-1], f"{rate}=0.02"),), resume=True)
    assert write_report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    for row in (f"| {rate} | 0.05 | 0.01 |", "| model.depth | 1 | 2 |", "| train.epochs | 2 | 3 |"):
        assert row in text
    line = "Arm deep, arrays against those of baseline: 20 equal; 12 more (blocks_1/attn/proj/bias, "
    assert all(line in (tmp_path / page).read_text() for page in ("report.md", "report.html"))


@pytest.mark.slow
def test_initial_weights_are_those_of_the_start_after_a_resume(tmp_path):
    experiment = add_arm(tiny.digits(), "mine", "from=fsg", "optimizer.momentum=0.8")
    first = ablate.train_together(experiment, "mine", {0: tmp_path})[0][0]
    (tmp_path / "result.json").unlink()
    again = ablate.train_together(experiment, "mine", {0: tmp_path}, resume=True)[0][0]
    assert again["initial_weights"] == first["initial_weights"]
    assert len(first["initial_weights"]) == 20
