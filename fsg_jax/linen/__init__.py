"""Models of `flax.linen`: how they are called, which gates they have, and the state that they start with."""
