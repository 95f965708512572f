"""Audit a data set before training: which files decode, what they hold, duplicates, overlap with another data set.

    python recipes/audit.py k400_train.csv --root videos --output audit.csv [--against k400_test.csv ...]
    python recipes/audit.py --ava ava_train.csv --videos videos [--boxes boxes.csv --detections results.csv ...]

The first form writes a manifest, which training takes with the key `manifest`. The data set may also be a key of a
YAML file. Started again with the same `output`, an interrupted audit continues. The exit code is 1 if files cannot be
used: unreadable, or without a video stream.

The second form reports mistakes that would make the mean average precision of action detection zero; its exit code is
then 1. Its keys: `mvd_hf.detection.ava_audit.AvaAuditArguments`.

Keys: the data sets and the manifest (below), what is checked (`mvd_hf.curation.audit.AuditSettings`).
"""

import logging
from dataclasses import dataclass

from mvd_hf.arguments import parse_arguments, run_script
from mvd_hf.curation import AuditSettings, audit_videos, describe_audit, find_overlap, write_manifest
from mvd_hf.data.sources import load_rows, source_choices
from mvd_hf.detection.ava_audit import AvaAuditArguments, audit_ava, describe_ava


@dataclass
class AuditArguments:
    """The data set, another one that it must not overlap with, and the manifest.

    Args:
        dataset, split, root, dataset_config, streaming, video_column, class_level, allow_local_urls,
            frame_folder_fps: as in `mvd_hf.data.arguments.DataArguments`.
        label_column: column of the labels; `label`, if there is one, by default.
        against, against_split, against_root: another data set, searched for the same files (or folders of frames).
        output: the manifest, a CSV file.
    """

    dataset: str = ""
    split: str = "train"
    root: str | None = None
    dataset_config: str | None = None
    streaming: bool = False
    video_column: str | None = None
    class_level: str | None = None
    allow_local_urls: bool = False
    frame_folder_fps: float | None = None
    label_column: str | None = None
    against: str | None = None
    against_split: str = "test"
    against_root: str | None = None
    output: str = "audit.csv"

    def __post_init__(self):
        if not self.dataset:
            raise ValueError("No data: give a list file, a folder of videos or a Hub data set id.")


def audit_action_detection(arguments: list[str]) -> int:
    (audit,) = parse_arguments(arguments, AvaAuditArguments)
    findings = audit_ava(audit)
    logging.info("%s", describe_ava(audit, findings))
    return int(any(finding.is_fatal for finding in findings))


def main(arguments: list[str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if any(argument.partition("=")[0] == "--ava" for argument in arguments):
        return audit_action_detection(arguments)
    audit, settings = parse_arguments(arguments, AuditArguments, AuditSettings, first="dataset")
    options = audit.root, audit.dataset_config, audit.streaming
    rows = load_rows(audit.dataset, audit.split, *options, **source_choices(audit))
    against = None
    if audit.against is not None:
        options = {"streaming": audit.streaming, "frame_folder_fps": audit.frame_folder_fps}
        against = load_rows(audit.against, audit.against_split, audit.against_root, **options)
    reports = audit_videos(rows, settings, label_column=audit.label_column, output=audit.output)
    if against is not None:
        find_overlap(reports, against, settings)
    num_used = write_manifest(audit.output, reports, settings.drop)
    num_bad = sum(report.status in ("unreadable", "no_video") for report in reports)
    logging.info("%s", describe_audit(reports))
    logging.info("Training uses %d of %d files with --manifest %s", num_used, len(reports), audit.output)
    if num_bad:
        logging.error("%d files cannot be used; exit code 1. The manifest says why.", num_bad)
    return int(num_bad > 0)


if __name__ == "__main__":
    run_script(main)
