"""The head of experts: agreed formulas and DeepCTR's numbers, masks, feature gates, who reaches whom."""

import ast
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import fast
from flax.traverse_util import flatten_dict
from timm_weights import crc, draw

import fsg_jax as fsg
from fsg_jax.models.experts import HEADS, ExpertHead, FeatureGate, expert_head

GOLDENS = np.load(Path(__file__).parent / "goldens" / "experts.npz")
HOMES = sorted({key.split("/")[0] for key in GOLDENS if key.startswith("home")})
OTHERS = sorted({key.split("/")[0] for key in GOLDENS if not key.startswith("home")})
TASKS = {"t0": 1, "t1": 2, "t2": 1}
GROUPS = {"A": ("t0", "t1"), "B": ("t2",)}
X = jnp.asarray(np.random.default_rng(0).normal(size=(6, 10)), jnp.float32)


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def tensors(key, prefix=""):
    """The weights of a golden, by the rule, with PyTorch's names."""
    named = (str(entry).rsplit(":", 1) for entry in GOLDENS[f"{key}/names"])
    return {name: draw(prefix + name, tuple(map(int, shape.split("x")))) for name, shape in named}


def dense(weights, name, bias=None):
    found = {"kernel": weights[f"{name}.weight"].T}
    bias = bias or f"{name}.bias"
    return found | ({"bias": weights[bias]} if bias in weights else {})


def stacked(weights, names, layer):
    return {"kernel": np.stack([weights[f"{n}.{layer}.weight"].T for n in names])} | {
        "bias": np.stack([weights[f"{n}.{layer}.bias"] for n in names])
    }


CAPTURED = ["experts", "batch_stats"]


def home(key):
    """The head and its variables, of the agreed formula of HoME."""
    config, weights = ast.literal_eval(str(GOLDENS[f"{key}/config"])), tensors(key, f"{key}/")
    head = ExpertHead(
        {task: 1 for members in config["groups"].values() for task in members},
        config["groups"],
        (config["n1"], config["n2"]),
        (config["d1"], config["d2"]),
        config["hidden"],
        tower_hidden=(config["tower"],),
        norm={"ln": "layer", "none": "none"}.get(config["norm"], "batch"),
        activation="swish",
        feature_gates=config["n_lora"] * config["feature_gate"],
        feature_rank=config.get("rank"),
        self_gates=config["self_gate"],
        share_all=config["share_all"],
        gate_input={"group": "stream"}.get(config["gate_input"], config["gate_input"]),
        gate_bias=config["gate_bias"],
        dtype=jnp.float64,
    )
    params, statistics = {}, {}
    for number in (1, 2):
        level, experts = f"level{number}", [name.split(".") for name in head.expert_names[number - 1]]
        names = [f"l{number}.{node}.e{i}" for node, i in experts]
        own = {f"fc{j}": stacked(weights, names, f"fc{j}") for j in range(len(config["hidden"]) + 1)}
        if config["norm"] != "none":
            scale, bias = (np.stack([weights[f"{n}.norm.{part}"] for n in names]) for part in ("weight", "bias"))
            own["norm"] = {"scale": scale, "bias": bias}
        if config["norm"] == "bn_eval":
            mean, var = (np.stack([weights[f"{n}.norm.running_{part}"] for n in names]) for part in ("mean", "var"))
            statistics[level] = {"experts": {"norm": {"mean": mean, "var": var}}}
        params[level] = {"experts": own}
        for node in {**config["n1"], **config["n2"]}:
            name = f"l{number}.{node}"
            if f"{name}.feagate.lora0.down.weight" in weights:
                loras = [f"{name}.feagate.lora{i}" for i in range(config["n_lora"])]
                found = {p: np.stack([weights[f"{lora}.{p}.weight"].T for lora in loras]) for p in ("down", "up")}
                mix = {"mix": {"out": dense(weights, f"{name}.feagate.mix")}} if len(loras) > 1 else {}
                params[level][f"feature_gate_{node}"] = found | mix
            for ours, theirs in (("gate", "gate"), ("self_gate", "selfgate")):
                if f"{name}.{theirs}.weight" in weights:
                    params[level][f"{ours}_{node}"] = {"out": dense(weights, f"{name}.{theirs}")}
    for task in head.tasks:
        params[f"tower_{task}"] = {
            "fc0": dense(weights, f"tower.{task}.fc0"),
            "out": dense(weights, f"tower.{task}.fc1"),
        }
    return head, {"params": params} | ({"batch_stats": statistics} if statistics else {})


def same_leaves(variables, head, x):
    shapes = flatten_dict(jax.eval_shape(head.init, jax.random.key(0), x), sep="/")
    assert {k: v.shape for k, v in flatten_dict(variables, sep="/").items()} == {k: v.shape for k, v in shapes.items()}


@pytest.mark.parametrize("key", fast(HOMES, lambda key: key in ("home_default", "home_bn_train", "home_group_bias")))
def test_home_is_the_agreed_formula(key, double):
    head, variables = home(key)
    x = jnp.asarray(np.random.default_rng(crc(f"{key}/v")).normal(size=GOLDENS[f"{key}/shape"]))
    dy = np.random.default_rng(crc(f"{key}/dy")).normal(size=GOLDENS[f"{key}/y"].shape)
    if train := key == "home_bn_train":
        variables["batch_stats"] = jax.eval_shape(head.init, jax.random.key(0), x)["batch_stats"]
        variables["batch_stats"] = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), variables["batch_stats"])
    same_leaves(variables, head, x)

    def loss(params, x):
        found, captured = head.apply(
            {**variables, "params": params}, x, train=train, mutable=["experts", "batch_stats"]
        )
        y = jnp.concatenate([*found.values()], axis=1)
        return jnp.sum(y * dy), (y, captured["experts"])

    (_, (y, captured)), (gradient, dx) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(variables["params"], x)
    np.testing.assert_allclose(y, GOLDENS[f"{key}/y"], rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(dx, GOLDENS[f"{key}/dv"], rtol=1e-11, atol=1e-11)
    for number, (nodes, experts) in enumerate(zip(head.gate_names, head.expert_names, strict=True), 1):
        (rows,) = captured[f"level{number}"]["gates"]
        for row, node in zip(jnp.unstack(rows, axis=1), nodes, strict=True):
            golden = GOLDENS[f"{key}/l{number}.{node}.gate"]
            there = [i for i in range(len(experts)) if float(jnp.abs(row[:, i]).max()) > 0]
            np.testing.assert_allclose(row[:, there], golden, rtol=1e-11, atol=1e-12)
    total = sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(gradient))
    np.testing.assert_allclose(total, np.sum(GOLDENS[f"{key}/grad_norms"] ** 2), rtol=1e-10)


def deepctr(key):
    """The head and its parameters for DeepCTR's MMoE, CGC and PLE, whose experts and gates end in a ReLU, if any."""
    config, weights = ast.literal_eval(str(GOLDENS[f"{key}/config"])), tensors(key)
    tasks, hidden = config["task_names"], config["expert_dnn_hidden_units"]
    shared, own = config.get("shared_expert_num", config.get("num_experts")), config.get("specific_expert_num", 0)
    levels = config.get("num_levels", 1)
    head = ExpertHead(
        dict.fromkeys(tasks, 1),
        experts=({"shared": shared} | ({"task": own} if own else {}),) * levels,
        expert_width=hidden[-1],
        expert_hidden=hidden[:-1],
        gate_hidden=config["gate_dnn_hidden_units"],
        tower_hidden=config["tower_dnn_hidden_units"],
        dtype=jnp.float64,
    )
    depth = range(len(config["gate_dnn_hidden_units"]))

    def gate(deep, last):
        return {f"fc{j}": dense(weights, f"{deep}.linears.{j}") for j in depth} | {"out": dense(weights, last)}

    params = {}
    for i in range(levels):
        if own:
            names = [f"shared_experts.{i}.0.{e}" for e in range(shared)]
            names += [f"specific_experts.{i}.{t}.{e}" for t in range(len(tasks)) for e in range(own)]
        else:
            names = [f"expert_dnn.{e}" for e in range(shared)]
        level = {"experts": {f"fc{j}": stacked(weights, names, f"linears.{j}") for j in range(len(hidden))}}
        for t, task in enumerate(tasks):
            deep, last = f"specific_gate_dnn.{i}.{t}.0", f"specific_gate_dnn_final_layer.{i}.{t}"
            found = gate(deep, last) if own else gate(f"gate_dnn.{t}", f"gate_dnn_final_layer.{t}")
            level[f"gate_{task}"] = found
            if own:  # there the own experts come first
                kernel = found["out"]["kernel"]
                found["out"]["kernel"] = np.concatenate([kernel[:, own:], kernel[:, :own]], axis=1)
        if i < levels - 1:
            level["gate_shared"] = gate(f"shared_gate_dnn.{i}", f"shared_gate_dnn_final_layer.{i}")
            kernel = level["gate_shared"]["out"]["kernel"]
            level["gate_shared"]["out"]["kernel"] = np.concatenate([kernel[:, -shared:], kernel[:, :-shared]], axis=1)
        params[f"level{i + 1}"] = level
    for t, task in enumerate(tasks):
        tower = {"fc0": dense(weights, f"tower_dnn.{t}.linears.0")}
        params[f"tower_{task}"] = tower | {"out": dense(weights, f"tower_dnn_final_layer.{t}", f"out.{t}.bias")}
    return head, {"params": params}


@pytest.mark.parametrize("key", fast(OTHERS, 4))
def test_mmoe_cgc_and_ple_are_those_of_deepctr(key, double):
    head, variables = deepctr(key)
    kinds = ast.literal_eval(str(GOLDENS[f"{key}/config"]))["task_types"]
    x = jnp.asarray(np.random.default_rng(crc(f"{key}/x")).normal(size=GOLDENS[f"{key}/shape"]))
    same_leaves(variables, head, x)
    found = jax.jit(head.apply)(variables, x)
    for t, (y, kind) in enumerate(zip(found.values(), kinds, strict=True)):
        y = jax.nn.sigmoid(y) if kind == "binary" else y
        np.testing.assert_allclose(y[:, 0], GOLDENS[f"{key}/output_official"][:, t], rtol=1e-11, atol=1e-11)


def made(name="home", tasks=TASKS, groups=GROUPS, seed=0, **options):
    head = expert_head(name, tasks, groups=groups, expert_width=8, tower_hidden=(5,), **options)
    return head, head.init(jax.random.key(seed), X)


def captured(head, variables, x=X, **options):
    return head.apply(variables, x, mutable=["experts"], **options)[1]["experts"]


@pytest.mark.parametrize("name", fast(HEADS, lambda name: name in ("home", "ple", "mmoe")))
def test_a_row_of_gates_sums_to_1_and_is_0_off_its_path(name):
    head, variables = made(name)
    for rows in (captured(head, variables), captured(head.clone(gate_dropout=0.6), variables, train=True, rngs=KEYS)):
        for i, (nodes, experts) in enumerate(zip(head.gate_names, head.expert_names, strict=True), 1):
            (weights,) = rows[f"level{i}"]["gates"]
            assert weights.shape == (6, len(nodes), len(experts))
            np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
            group = {task: g for g, members in GROUPS.items() for task in members}
            for node, row in zip(nodes, jnp.unstack(weights, axis=1), strict=True):
                path = {"shared", node, group.get(node)}
                off = [j for j, e in enumerate(experts) if e.split(".")[0] not in path and node != "shared"]
                np.testing.assert_array_equal(row[:, off], 0)


KEYS = {"dropout": jax.random.key(3)}


def test_a_new_feature_gate_changes_nothing_bit_for_bit():
    with_gates, variables = made()
    x = jnp.asarray(np.random.default_rng(1).normal(size=(64, 10)) * 10 ** np.arange(-4.0, 6)).astype(jnp.float32)
    for count in (1, 2, 3):
        gate = FeatureGate(count, 5)
        np.testing.assert_array_equal(gate.apply(gate.init(jax.random.key(0), x), x), x)
    without = with_gates.clone(feature_gates=0)
    params = {k: dict(v) for k, v in variables["params"].items()}
    for level in ("level1", "level2"):
        params[level] = {k: v for k, v in params[level].items() if "feature_gate" not in k}
    for a, b in zip(
        with_gates.apply(variables, X).values(), without.apply({"params": params}, X).values(), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("share_all", fast([True, False]))
def test_a_loss_reaches_other_groups_only_through_the_shared_gate(share_all):
    head, variables = made(share_all=share_all)
    gradient = jax.grad(lambda v: head.apply(v, X)["t0"].sum())(variables)["params"]
    reached = {}
    for i, names in enumerate(head.expert_names, 1):
        norms = jnp.linalg.norm(gradient[f"level{i}"]["experts"]["fc0"]["kernel"], axis=(1, 2))
        reached |= {(i, name): float(norm) for name, norm in zip(names, norms, strict=True)}
    assert all(norm > 0 for (i, name), norm in reached.items() if name[0] in "sA" or name[:2] == "t0")
    assert all((norm > 0) == share_all for (i, name), norm in reached.items() if i == 1 and name[0] == "B")
    assert all(
        norm == 0 for (i, name), norm in reached.items() if i == 2 and (name[0] == "B" or name[:2] in ("t1", "t2"))
    )


def test_mmoe_is_a_head_of_one_node_and_a_shared_bottom_has_no_gates():
    head, variables = made("shared_bottom")
    assert sorted(variables["params"]["level1"]) == ["experts"]
    mmoe, variables = made("mmoe", experts=({"shared": 1},))
    for a, b in zip(head.apply(variables, X).values(), mmoe.apply(variables, X).values(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("norm", fast(["batch", "layer", "none"]))
def test_batches_of_one_and_bfloat16(norm):
    head, variables = made(norm=norm)
    one = head.apply(variables, X[:1])
    for task, outputs in TASKS.items():
        assert one[task].shape == (1, outputs)
        np.testing.assert_allclose(one[task], head.apply(variables, X)[task][:1], rtol=2e-5, atol=1e-6)
    found, _ = head.apply(variables, X[:1], train=True, mutable=["batch_stats"])
    half = head.clone(dtype=jnp.bfloat16).apply(variables, X)
    for task in TASKS:
        assert np.isfinite(found[task]).all()
        assert half[task].dtype == jnp.float32
        np.testing.assert_allclose(half[task], head.apply(variables, X)[task], atol=0.1)


def test_gates_of_a_tower_are_injected_and_fold():
    _, variables = made()
    head, gated = made(gate=fsg.Gate)
    jax.tree.map(np.testing.assert_array_equal, gated["params"], variables["params"])
    assert sorted(gated["gates"]) == ["tower_t0", "tower_t1", "tower_t2"]
    folded, after = fsg.fold_gates(head, gated)
    assert "gates" not in after
    for task in TASKS:
        np.testing.assert_allclose(folded.apply(after, X)[task], head.apply(gated, X)[task], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": {}}, "tasks: expected one or more, found none"),
        ({"tasks": {"t0": 0}, "groups": {}}, r"tasks\['t0'\]: expected an integer >= 1, found 0"),
        ({"groups": {"A": ("t0", "t9")}}, "groups: expected tasks, each once, found"),
        ({"groups": {"A": ("t0",), "B": ("t0",)}}, "groups: expected tasks, each once, found"),
        ({"groups": {"t1": ("t0",)}}, "tasks, groups: expected names that differ"),
        ({"tasks": {"shared": 1}, "groups": {}}, "tasks, groups: expected names that differ"),
        ({"tasks": {"a/b": 1}, "groups": {}}, "tasks, groups: expected names that are not empty and have no /"),
        ({"experts": ()}, "experts: expected one level or more, found none"),
        ({"experts": ({"C": 1},)}, r"experts\[0\]: expected nodes"),
        ({"experts": ({"shared": -1},)}, r"experts\[0\]\['shared'\]: expected an integer >= 0, found -1"),
        ({"experts": ({"A": 2},)}, r"experts\[0\]: expected an expert on the path of every output, found .*t2"),
        ({"experts": ({"task": 1}, {"shared": 1})}, r"experts\[1\]: expected a stream of the level before .*shared"),
        ({"expert_width": (8,)}, "expert_width: expected one a level, 2, found 1"),
        ({"expert_width": 0}, r"expert_width\[0\]: expected an integer >= 1, found 0"),
        ({"norm": "instance"}, "norm: expected"),
        ({"gate_dropout": 1.0}, "gate_dropout: expected"),
        ({"gate": fsg.Gate()}, "gate: expected None or a factory"),
    ],
)
def test_what_cannot_be_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        expert_head("home", **{"tasks": TASKS, "groups": GROUPS} | options)


def test_a_head_is_saved_and_loaded(tmp_path):
    head, variables = made()
    fsg.save_pretrained(tmp_path / "head", head, variables)
    loaded = fsg.load_pretrained(tmp_path / "head")
    assert loaded.model == head
    jax.tree.map(np.testing.assert_array_equal, loaded.variables["params"], variables["params"])


def test_a_head_in_a_module_has_a_name_of_its_own():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return expert_head("shared_bottom", {"t": 1}, name="head")(nn.Dense(3)(x))

    params = jax.eval_shape(Net().init, jax.random.key(0), X)["params"]
    assert params.keys() == {"Dense_0", "head"}


def test_an_unknown_head_and_wrong_inputs_are_errors():
    with pytest.raises(ValueError, match=r"unknown head of experts 'mmmoe' .*did you mean 'mmoe'"):
        expert_head("mmmoe", TASKS)
    head, variables = made()
    for x in (X[0], X.astype(jnp.int32)):
        with pytest.raises(ValueError, match="x: expected floating point of shape"):
            head.apply(variables, x)


# Losses of several tasks


def parts(**labels):
    loss = fsg.make_task_loss(
        {
            "t0": fsg.where_present(lambda o, b: fsg.losses.squared_error(o, b, key="a"), "a"),
            "t1": fsg.where_present(fsg.losses.make_cross_entropy(key="b"), "b"),
        },
        {"t0": 3.0},
    )
    batch = {"x": X, "a": np.arange(6, dtype=np.float32), "b": np.int32([0, 1, 1, 0, 1, 0])} | labels
    head = expert_head("home", {"t0": 1, "t1": 2}, expert_width=4, tower_hidden=())
    return loss, batch, head


def state_of(head, tx=None):
    return fsg.init_state(head, tx or optax.sgd(0.1), jax.random.key(0), X, train_flag="train")


MISSING = {"a": np.float32([0, np.nan, np.nan, np.nan, 4, np.nan]), "b": np.int32([0, 1, 1, -1, 1, 0])}


@pytest.mark.parametrize("accumulate", fast([3, 2, 6]))
def test_the_mean_of_a_task_is_over_its_labels_however_a_batch_is_cut(accumulate):
    loss, batch, head = parts(**MISSING)
    state = state_of(head)
    y = head.apply(state.variables, X)
    want = 3 * np.mean((np.asarray(y["t0"])[[0, 4], 0] - [0, 4]) ** 2)
    want += np.mean(-np.asarray(jax.nn.log_softmax(y["t1"]))[[0, 1, 2, 4, 5], [0, 1, 1, 1, 0]])
    steps = [fsg.make_train_step(loss, "none", inputs="x", accumulate=count) for count in (accumulate, 1)]
    (new, metrics), (other, _) = (step(jax.tree.map(jnp.copy, state), batch) for step in steps)
    np.testing.assert_allclose(metrics["loss"], want, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), new.params, other.params)
    evaluated = fsg.make_eval_step(loss, inputs="x")
    halves = [{k: v[:3] for k, v in batch.items()}, {k: v[3:] for k, v in batch.items()}]
    np.testing.assert_allclose(fsg.evaluate(evaluated, state, halves)["loss"], want, rtol=1e-5)


def test_probabilities_that_are_missing_are_one_label():
    labels = jnp.where(jnp.arange(6)[:, None] < 2, jnp.nan, jnp.float32([[0.25, 0.75]]))
    loss = fsg.where_present(fsg.losses.make_cross_entropy(key="b"), "b")
    values, weights = loss(jnp.zeros((6, 2)), {"b": labels})
    np.testing.assert_array_equal(weights, [0, 0, 1, 1, 1, 1])
    np.testing.assert_allclose(values[2:], np.log(2), rtol=1e-6)


def test_a_task_without_any_label_moves_nothing_of_its_own():
    loss, batch, head = parts(a=np.full(6, np.nan, np.float32))
    state = state_of(head)
    before = jax.tree.map(np.asarray, state.params)
    new, metrics = fsg.make_train_step(loss, "none", inputs="x")(state, batch)
    assert np.isfinite(metrics["loss"])
    jax.tree.map(np.testing.assert_array_equal, new.params["tower_t0"], before["tower_t0"])
    assert float(jnp.abs(new.params["tower_t1"]["out"]["kernel"] - before["tower_t1"]["out"]["kernel"]).max()) > 0


@pytest.mark.slow
def test_learned_weights_go_to_the_logarithm_of_twice_the_loss():
    """At the optimum of exp(-s) L + s / 2 in s, s = log(2 L)."""
    loss, batch, head = parts(**MISSING)
    head = head.clone(log_variance=True)
    tx = fsg.routed(
        labels={"learned": "params/log_variance", "held": ...}, learned=optax.sgd(0.2), held=optax.set_to_zero()
    )
    state, step = state_of(head, tx), fsg.make_train_step(loss, "none", inputs="x")
    y = head.apply(state.variables, X)
    for _ in range(200):
        state, _ = step(state, batch)
    squared = 3 * np.mean((np.asarray(y["t0"])[[0, 4], 0] - [0, 4]) ** 2)
    nats = np.mean(-np.asarray(jax.nn.log_softmax(y["t1"]))[[0, 1, 2, 4, 5], [0, 1, 1, 1, 0]])
    np.testing.assert_allclose(state.params["log_variance"], np.log([2 * squared, 2 * nats]), atol=1e-3)


def test_task_losses_name_what_is_missing():
    loss, batch, _ = parts()
    with pytest.raises(ValueError, match="outputs: expected a mapping with 't1', found one of"):
        loss({"t0": jnp.zeros((6, 1))}, batch)
    with pytest.raises(ValueError, match="batch: expected the key 'b', found"):
        loss({"t0": jnp.zeros((6, 1)), "t1": jnp.zeros((6, 2))}, {"a": batch["a"]})
    with pytest.raises(ValueError, match="weights: expected tasks"):
        fsg.make_task_loss({"t0": fsg.losses.squared_error}, {"t9": 1.0})


@pytest.mark.slow
def test_the_gates_of_each_task_are_moved_by_its_own_loss():
    """Gradient routing by passes: task gates as labels of their own."""
    loss, batch, head = parts(a=np.full(6, np.nan, np.float32))
    own = {f"gates_{task}": f"params/level[12]/(self_)?gate_{task}/.*" for task in ("t0", "t1")}
    optimizers = {name: optax.sgd(0.5) for name in own}
    tx = fsg.routed(labels={**own, "weights": ...}, weights=optax.sgd(0.1), **optimizers)
    state = state_of(head, tx)
    before = jax.tree.map(np.asarray, state.params)

    def only(task):
        return lambda outputs, batch: {task: loss(outputs, batch)[task]}

    passes = [fsg.routing.Pass([f"gates_{task}"], only(task)) for task in ("t0", "t1")] + [
        fsg.routing.Pass(["weights"])
    ]
    new, _ = fsg.make_train_step(loss, inputs="x", passes=passes)(state, batch)
    moved = {k: bool(jnp.any(v != before["level2"][k]["out"]["kernel"])) for k, v in gates(new).items()}
    assert moved == {"gate_t0": False, "gate_t1": True}


def gates(state):
    return {f"gate_{t}": state.params["level2"][f"gate_{t}"]["out"]["kernel"] for t in ("t0", "t1")}


@pytest.mark.slow
def test_several_streams_end_in_a_head_of_experts(tmp_path):
    head = partial(ExpertHead, TASKS, GROUPS, expert_width=8, tower_hidden=())
    options = {"backbone": "resnet18", "streams": {"rgb": 3}, "hidden": 12, "backbone_options": {"width": 4}}
    model = fsg.create_model("multistream", num_classes=0, gate=fsg.Gate, head=head, **options)
    x = {"rgb": jnp.ones((2, 32, 32, 3))}
    variables = model.init(jax.random.key(0), x)
    found = model.apply(variables, x)
    assert {task: y.shape for task, y in found.items()} == {"t0": (2, 1), "t1": (2, 2), "t2": (2, 1)}
    folded, after = fsg.fold_gates(model, variables)
    fsg.save_pretrained(tmp_path / "model", folded, after)
    loaded = fsg.load_pretrained(tmp_path / "model")
    for task, y in loaded.model.apply(loaded.variables, x).items():
        np.testing.assert_allclose(y, found[task], atol=1e-5)
    with pytest.raises(ValueError, match="num_classes: expected 0 with a head of its own, found 3"):
        fsg.create_model("multistream", num_classes=3, head=head)
    with pytest.raises(ValueError, match=r"num_classes: expected None, as the head of .*, found 3"):
        fsg.load_pretrained(tmp_path / "model", num_classes=3)
    gated = model.clone(head=partial(head, gate=fsg.Gate))
    with pytest.raises(ValueError, match=r"gates: expected gates of which MultiStream.gate_sites\(\) tells"):
        fsg.fold_gates(gated, gated.init(jax.random.key(0), x))
