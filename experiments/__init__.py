"""The ablation: configurations, commands, the training loop, logs and the report."""

import os
import sys
from pathlib import Path

# Every command is ``python -m experiments.NAME``, the data commands of the endoscopy wing too.
__path__.append(str(Path(__file__).parent / "endoscopy"))

# A stream that was closed (2>&-): its number must not be given to the next file, which would then get what C code says.
for _number, _name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
    if getattr(sys, _name) is None:
        try:
            os.fstat(_number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
        setattr(sys, _name, Path(os.devnull).open("r+"))  # noqa: SIM115  # as long as the process
