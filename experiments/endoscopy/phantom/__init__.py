"""A made-up colonoscopy set in the layouts of REAL-Colon and SUN; ``python -m experiments.phantom --help``."""
