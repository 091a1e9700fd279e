"""Another name of ``python -m experiments.ablate``, from when polyp sizing had a command of its own."""

from experiments.ablate import main
from experiments.errors import run_main

if __name__ == "__main__":
    run_main(main)
