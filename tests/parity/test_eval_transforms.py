"""Our video processor against the pixels of the official validation and test transforms, to the bit.

The numbers lie beside this file (see README.md there); MVD_PARITY_DIR names another folder of the same form.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mvd_hf import MVDVideoProcessor
from mvd_hf.model.resizing_mvd import crop_offsets, resize_short_side

FOLDER = Path(os.environ.get("MVD_PARITY_DIR", Path(__file__).parent))
TENSORS = load_file(FOLDER / "eval_transforms.safetensors")
CASES = json.loads((FOLDER / "eval_transforms.json").read_text())["cases"]
SAMPLING = json.loads((FOLDER / "sampling.json").read_text())


def processor(case: dict, **fields) -> MVDVideoProcessor:
    return MVDVideoProcessor(size=case["short_side"], crop_size=case["crop"], **fields)


def frames_of(case: dict) -> torch.Tensor:
    return TENSORS[f"{case['case']}.input_uint8_THWC"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["case"])
def test_validation_pixels(case):
    pixels = processor(case, do_rescale=False, do_normalize=False, do_sample_frames=False)
    clip = pixels(frames_of(case).numpy(), return_tensors="pt").pixel_values[0]
    assert torch.equal(clip.permute(0, 2, 3, 1), TENSORS[f"{case['case']}.validation_uint8_THWC"])
    assert (
        list(resize_short_side(frames_of(case).movedim(-1, 1), case["short_side"]).shape[-2:]) == case["resized_h_w"]
    )


@pytest.mark.parametrize("case", [case for case in CASES if case["T"] > 1], ids=lambda case: case["case"])
def test_pixels_of_every_test_view(case):
    views = processor(
        case,
        do_rescale=False,
        do_normalize=False,
        do_sample_frames=True,
        num_frames=case["test_clip_len"],
        frame_sampling_rate=case["frame_sample_rate"],
        num_clips=case["test_num_segment"],
        num_crops=case["test_num_crop"],
    )(frames_of(case).numpy(), return_tensors="pt").pixel_values[0]
    assert len(views) == len(case["views"])
    for view, (clip, crop, shape) in zip(views, case["views"], strict=True):
        official = TENSORS.get(f"{case['case']}.test_chunk{clip}_crop{crop}_uint8_THWC")
        if official is None:  # of the later clips only the last crop is stored
            assert clip > 0
            assert list(view.permute(0, 2, 3, 1).shape) == shape
        else:
            assert torch.equal(view.permute(0, 2, 3, 1), official)


def test_normalised_values(record_property):
    case = CASES[0]
    clip = processor(case)(frames_of(case).numpy(), do_sample_frames=False, return_tensors="pt").pixel_values[0]
    difference = (clip[0] - TENSORS["clip0.validation_frame0"]).abs().max().item()
    views = processor(case, num_frames=2, frame_sampling_rate=1, num_clips=2, num_crops=3)
    last = views(frames_of(case).numpy(), do_sample_frames=True, return_tensors="pt").pixel_values[0, -1]
    view_difference = (last.transpose(0, 1) - TENSORS["clip0.test_chunk1_crop2"]).abs().max().item()
    record_property("validation", difference)
    record_property("view", view_difference)
    assert max(difference, view_difference) < 2e-6  # a grey level is 0.017


@pytest.mark.parametrize("case", SAMPLING["test_spatial_crops"])
def test_places_of_test_crops(case):
    height, width = case["source_h_w"]
    resized = resize_short_side(torch.zeros(1, 1, height, width, dtype=torch.uint8), case["short_side"]).shape[-2:]
    assert list(resized) == case["resized_h_w"]
    offsets = crop_offsets(*resized, case["short_side"], case["num_crops"])
    assert [list(offset) for offset in offsets] == case["crop_start_y_x"]


@pytest.mark.parametrize("case", SAMPLING["validation_centre_crop"])
def test_place_of_the_validation_crop(case):
    assert [list(offset) for offset in crop_offsets(*case["resized_h_w"], 224)] == [case["centre_crop_start_y_x"]]
