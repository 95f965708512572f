"""The mean average precision of action detection against the official ActivityNet evaluation of AVA.

The numbers lie beside this file; MVD_PARITY_DIR names another folder of the same form.
"""

import json
import os
from pathlib import Path

import pytest

from mvd_hf.detection.ava import AVA_ACTIONS, SCORED_ACTIONS, ava_map

FOLDER = Path(os.environ.get("MVD_PARITY_DIR", Path(__file__).parent))
MAP, CLASS = "Precision/mAP@0.5IOU", "PerformanceByCategory/AP@0.5IOU/"
PROTOCOLS = {"top50_per_image": 50, "all_detections": None}


@pytest.fixture(scope="module")
def official() -> dict:
    return json.loads((FOLDER / "ava_map.json").read_text())


def test_the_scored_actions_are_the_official_ones(official):
    assert list(SCORED_ACTIONS) == official["class_ids_scored"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("case", sorted(path.name.split("_")[1] for path in FOLDER.glob("ava_*_groundtruth.csv")))
def test_ava_map(official, case, protocol, record_property):
    found = ava_map(
        FOLDER / f"ava_{case}_groundtruth.csv", FOLDER / f"ava_{case}_detections.csv", top_k=PROTOCOLS[protocol]
    )
    expected = official[case][protocol]
    assert found["mAP"] == pytest.approx(expected[MAP], abs=1e-9)
    record_property("mAP", float(abs(found["mAP"] - expected[MAP])))
    precisions = {f"{CLASS}{AVA_ACTIONS[number]}": value for number, value in found["AP"].items()}
    assert precisions.keys() == expected.keys() - {MAP}
    for name, value in precisions.items():
        assert value == (None if expected[name] is None else pytest.approx(expected[name], abs=1e-9)), name
