"""Which layers of a Transformer need their attention: ``python examples/text_transformer.py``.

A text is 4 questions, then a list of 3 to 8 words that all differ, then padding; the answer to a question is whether
its word is in the list. No token can answer that by itself. Three layers are one ``nn.scan``, with a gate on what
attention adds and on what the dense layers add, so that each gate is a stack that is shown a layer each. The loss gives
``(values, weights)``, with a weight of 0 at tokens that are no question. Gates and weights have optimizers of their own
and one backward pass (``"joint"``); a penalty closes channels that do not pay. Printed are the open channels of every
gate, and how many questions are answered right if one gate is closed: chance is 50 %.
"""

import re
from dataclasses import replace

import flax.linen as nn
import jax
import numpy as np
import optax

import fsg_jax as fsg

WORDS, QUESTIONS, LONGEST, DIM, LAYERS, BATCH = 16, 4, 8, 32, 3, 64


class Layer(nn.Module):
    """Attention and dense layers, each behind a gate on its way into the sum."""

    @nn.compact
    def __call__(self, x, mask):
        """``(x, None)``, as `nn.scan` wants it, of tokens (batch, length, DIM)."""
        y = nn.MultiHeadDotProductAttention(num_heads=2, name="attend")(nn.LayerNorm()(x), mask=mask)
        x = x + fsg.Gate(kind="straight_through", name="attention")(y)
        y = nn.Dense(DIM, name="down")(nn.relu(nn.Dense(2 * DIM, name="up")(nn.LayerNorm()(x))))
        return x + fsg.Gate(kind="straight_through", name="dense")(y), None


class Transformer(nn.Module):
    """Logits (batch, length, 2) of tokens (batch, length); token 0 is padding."""

    @nn.compact
    def __call__(self, tokens):
        """Every token attends to all that are not padding."""
        there = tokens > 0
        place = self.param("place", nn.initializers.normal(0.02), (tokens.shape[1], DIM))
        x = nn.Embed(WORDS + 1, DIM)(tokens) + place[None]
        axes = {"variable_axes": {"params": 0, "gates": 0}, "split_rngs": {"params": True, "gates": True}}
        layers = nn.scan(Layer, length=LAYERS, in_axes=nn.broadcast, **axes)(name="layers")
        x, _ = layers(x, nn.make_attention_mask(there, there))
        return nn.Dense(2)(x)


def make_texts(count: int, seed: int) -> dict:
    """``tokens``, ``label`` and ``weight``, each (count, QUESTIONS + LONGEST)."""
    draw = np.random.default_rng(seed)
    words = draw.permuted(np.tile(np.arange(1, WORDS + 1), (count, 1)), axis=1)
    length = draw.integers(3, LONGEST + 1, (count, 1))
    answer = draw.integers(2, size=(count, QUESTIONS))
    place = np.where(answer == 1, draw.integers(length, size=answer.shape), draw.integers(length, WORDS, answer.shape))
    listed = np.where(np.arange(LONGEST) < length, words[:, :LONGEST], 0)
    tokens = np.concatenate([np.take_along_axis(words, place, 1), listed], 1)
    label = np.concatenate([answer, np.zeros_like(listed)], 1)
    weight = np.concatenate([np.ones_like(answer), np.zeros_like(listed)], 1)
    return {"tokens": tokens, "label": label, "weight": np.float32(weight)}


def loss(outputs, batch):
    """Cross-entropy of the questions: a value and a weight each token."""
    return fsg.losses.cross_entropy(outputs, batch), batch["weight"]


def accuracy(outputs, batch):
    """Likewise."""
    return fsg.metrics.accuracy(outputs, batch), batch["weight"]


def main(steps: int = 350, price: float = 1.5e-3) -> None:
    """Trains the Transformer; `price` is the penalty of an open channel, in nats."""
    train, test = make_texts(BATCH * steps, 0), make_texts(1000, 1)
    tx = fsg.routed(params=optax.adam(4e-3), gates=optax.adam(3e-2))
    state = fsg.init_state(Transformer(), tx, jax.random.key(0), test["tokens"][:1])
    penalty, metrics = fsg.gate_penalty("l0", price), {"accuracy": accuracy}
    step = fsg.make_train_step(loss, "joint", inputs="tokens", penalty=penalty)
    for i in range(steps):
        state, _ = step(state, {name: array[BATCH * i : BATCH * (i + 1)] for name, array in train.items()})

    evaluate = fsg.make_eval_step(loss, inputs="tokens", metrics=metrics)
    print(f"questions of new texts answered right: {evaluate(state, test)['accuracy']:.1%}")
    for name, kept in fsg.selected(state).items():
        _, gate, layer, _ = re.split(r"[/\[\]]", name)  # e.g. layers/attention[0]
        logits = state.gates["layers"][gate]["logits"].at[int(layer)].set(-1.0)
        gates = {"layers": {**state.gates["layers"], gate: {"logits": logits}}}
        closed = replace(state, variables=state.variables | {"gates": gates})
        print(f"{name}: {kept.sum()} of {DIM} channels open; without them {evaluate(closed, test)['accuracy']:.1%}")


if __name__ == "__main__":
    main()
