"""The ablation: configurations, commands, the training loop, logs and the report."""

from pathlib import Path

# Every command is ``python -m experiments.NAME``, the data commands of the endoscopy wing too.
__path__.append(str(Path(__file__).parent / "endoscopy"))
