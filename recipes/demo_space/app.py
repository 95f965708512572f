"""The demo page as a Space: the classifier that the variable MODEL names, and the clips of the folder `clips`."""

import os
from pathlib import Path

from mvd_hf.visualization.demo import DemoArguments, launch


def arguments() -> DemoArguments:
    """The page that this Space shows."""
    return DemoArguments(os.environ.get("MODEL", ""), examples=["clips"] if Path("clips").is_dir() else [])


if __name__ == "__main__":
    launch(arguments(), server_name=None)  # the Space's own settings say where
