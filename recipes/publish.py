"""Publish a checkpoint or a data set of clips on the Hub.

    python recipes/publish.py model outputs/tiny/student --repo me/mvd-tiny --license apache-2.0 [--dry_run true ...]
    python recipes/publish.py dataset clips/ --repo me/clips --license cc-by-4.0 [--label_column label ...]

A new repository is private; `--private false` makes it public. `--dry_run true` makes and shows all, and uploads
nothing. Keys: where to (below), what the card says (`mvd_hf.hub.CardDetails`, `mvd_hf.hub.DatasetDetails`).
"""

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mvd_hf.arguments import parse_arguments, read_yaml, run_script, take_name
from mvd_hf.hub.cards import CardDetails
from mvd_hf.hub.datasets import DatasetDetails, load_splits, publish_dataset
from mvd_hf.hub.publish import check_repo_id, publish

# what the authors report of their students
ZOO = Path(__file__).parents[1] / "model_cards" / "zoo.yaml"


@dataclass
class UploadArguments:
    """The repository `user/name`, whether a new one is `private`, and a branch (`revision`)."""

    repo: str
    private: bool = True
    revision: str | None = None
    dry_run: bool = False

    def __post_init__(self):
        check_repo_id(self.repo, "repo")  # before a data set is loaded

    def options(self) -> dict:
        return {"private": self.private, "revision": self.revision, "dry_run": self.dry_run}


@dataclass
class ModelArguments:
    """The checkpoint: its `folder`, an `example` video, and, for converted weights, the `row` of the model zoo."""

    folder: str
    example: str | None = None
    row: str | None = None


@dataclass
class SourceArguments:
    """The videos: `dataset` (a source, or one for each split), `root` of list files, `manifest` of an audit.

    `video_column`, `class_level` and `allow_local_urls` are as in `mvd_hf.data.sources.load_rows`.
    """

    dataset: str | dict
    root: str | None = None
    manifest: str | None = None
    video_column: str | None = None
    class_level: str | None = None
    allow_local_urls: bool = False


def read_row(name: str) -> dict:
    """One student of the model zoo; raises ValueError if there is none of that name."""
    zoo = read_yaml(ZOO)
    if name not in zoo:
        raise ValueError(f"The model zoo has no row {name!r}; choose {', '.join(zoo)}.")
    return zoo[name]


def publish_model(arguments: list[str]):
    to, source, details = parse_arguments(arguments, UploadArguments, ModelArguments, CardDetails, first="folder")
    if source.row is not None:
        details = replace(details, reported=read_row(source.row)["results"])
    return publish(source.folder, to.repo, details, example=source.example, **to.options())


def publish_clips(arguments: list[str]):
    to, source, details = parse_arguments(arguments, UploadArguments, SourceArguments, DatasetDetails, first="dataset")
    return publish_dataset(load_splits(**asdict(source)), to.repo, details, **to.options())


PUBLISHERS = {"model": publish_model, "dataset": publish_clips}


def main(arguments: list[str]):
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for client in ("httpx", "httpx2"):  # they log every request
        logging.getLogger(client).setLevel(logging.WARNING)
    what, rest = take_name(arguments, list(PUBLISHERS), "kind of publication")
    publication = PUBLISHERS[what](rest)
    logging.info("%s\n%s", publication.card, publication.describe())


if __name__ == "__main__":
    run_script(main)
