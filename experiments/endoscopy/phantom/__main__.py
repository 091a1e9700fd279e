"""``python -m experiments.phantom --out DIR --layout real-colon|sun``."""

import tyro

from experiments.endoscopy.phantom.phantom_plan import Config
from experiments.endoscopy.phantom.phantom_set import make_phantom
from experiments.errors import StopRequested, run_main


def main() -> None:
    """Makes the set that the command line asks for."""
    config = tyro.cli(Config, prog="python -m experiments.phantom")
    try:
        made = make_phantom(config)
    except KeyboardInterrupt:
        raise StopRequested("stopped; nothing was written") from None
    print(f"{config.out}: {'made' if made else 'already there'}; synthetic, {config.polyps} polyps, {config.layout}")


if __name__ == "__main__":
    run_main(main)
