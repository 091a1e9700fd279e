"""Which 5 of 50 columns of a table matter, beside a lasso and chance: ``python examples/tabular_selection.py``.

The target is a nonlinear function of five columns: a line, a product, a sine, a modulus, and a little noise. A network
with a hard-concrete gate on its input learns it, while a penalty closes the gates of columns that do not pay. A lasso
chosen by cross-validation sees the linear part alone. Printed are the columns that each takes, and R² on new rows of
one and the same gradient boosting that is trained on these columns: what a choice is worth to whoever uses it.
"""

import flax.linen as nn
import jax
import numpy as np
import optax
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import LassoCV

import fsg_jax as fsg


class Net(nn.Module):
    """A gate on the columns, then two hidden layers."""

    @nn.compact
    def __call__(self, x, train=False):
        """Predictions (batch, 1) of rows (batch, columns)."""
        x = fsg.Gate(kind="hard_concrete", name="columns")(x, train=train)
        x = nn.relu(nn.Dense(64)(x))
        return nn.Dense(1)(nn.relu(nn.Dense(64)(x)))


def make_table(rows: int, columns: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of 50 columns, and their targets, which depend on five `columns`."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(rows, 50)).astype(np.float32)
    a, b, c, d, e = x[:, columns].T
    y = a + b * c + np.sin(2 * d) + np.abs(e) + 0.1 * draw.normal(size=rows)
    return x, y.astype(np.float32)


def select(x: np.ndarray, y: np.ndarray, steps: int, price: float) -> np.ndarray:
    """The columns whose gates stay open; `price` is the penalty of an open one."""
    tx = fsg.routed(params=optax.adam(2e-3), gates=optax.adam(2e-2))
    state = fsg.init_state(Net(), tx, jax.random.key(0), x[:1])
    step = fsg.make_train_step(fsg.losses.squared_error, inputs="x", penalty=fsg.gate_penalty("l0", price))
    draw = np.random.default_rng(0)
    for _ in range(steps):
        rows = draw.integers(len(y), size=100)
        state, _ = step(state, {"x": x[rows], "target": y[rows]})
    return np.flatnonzero(fsg.selected(state)["columns"])


def main(steps: int = 2000, price: float = 0.2, seed: int = 0) -> None:
    """Draws the five columns by `seed`, and compares four choices."""
    draw = np.random.default_rng(seed)
    informative = draw.permutation(50)[:5]
    x, y = make_table(1000, informative, seed + 1)
    new_x, new_y = make_table(5000, informative, seed + 2)
    lasso = LassoCV(cv=5, random_state=0).fit(x, y)
    choices = {
        "gates": select(x, y, steps, price),
        "lasso, its largest 5": np.argsort(-abs(lasso.coef_))[:5],
        "chance": draw.permutation(50)[:5],
        "all": np.arange(50),
    }
    print("informative:", sorted(informative.tolist()))
    for name, columns in choices.items():
        boosting = HistGradientBoostingRegressor(random_state=0).fit(x[:, columns], y)
        shown = sorted(columns.tolist()) if len(columns) < 50 else "0 to 49"
        print(f"{name}: {shown}, R2 {boosting.score(new_x[:, columns], new_y):.2f}")


if __name__ == "__main__":
    main()
