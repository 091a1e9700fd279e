"""Why a network answers what it answers, and how little changes the answer."""

from fsg_jax.explain.adversarial import fgsm, input_gradient, largest_gradient, pgd, project, random_start

__all__ = ["fgsm", "input_gradient", "largest_gradient", "pgd", "project", "random_start"]
