"""The recipes: in a wheel the files beside this one, in a checkout those of its folder `recipes`."""

from pathlib import Path

FOLDER = Path(__file__).parent
if not (FOLDER / "distill.py").exists():
    FOLDER = Path(__file__).parents[3] / "recipes"
    __path__.append(str(FOLDER))
