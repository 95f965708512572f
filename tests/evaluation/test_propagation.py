"""Label propagation: objects are followed, and scored by J and F as computed by hand."""

import importlib.util
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import Dinov2Config, Dinov2Model

from launching import ROOT
from mvd_hf.evaluation.encoders import Encoder, EncoderArguments
from mvd_hf.evaluation.propagation import (
    PropagationSettings,
    contour,
    contour_accuracy,
    dilate,
    frame_features,
    is_near,
    propagate_labels,
    read_sequences,
    region_similarity,
    sequence_scores,
    track_objects,
)


def square(top: int, left: int, side: int = 4, size: int = 12) -> np.ndarray:
    mask = np.zeros((size, size), dtype=np.uint8)
    mask[top : top + side, left : left + side] = 1
    return mask


def test_region_similarity_is_intersection_over_union():
    assert region_similarity(square(2, 2), square(2, 2)) == 1
    assert region_similarity(square(2, 2), square(2, 4)) == pytest.approx(8 / 24)
    assert region_similarity(square(2, 2), square(8, 8)) == 0
    assert region_similarity(square(0, 0, 0), square(0, 0, 0)) == 1
    assert region_similarity(square(0, 0, 0), square(2, 2)) == 0


def test_a_contour_is_where_a_pixel_differs_from_its_right_or_lower_neighbours():
    expected = np.zeros((5, 5), dtype=bool)
    expected[1, 1:4] = expected[3, 1:4] = expected[1:4, 1] = expected[1:4, 3] = True
    # a square of 2 x 2: the ring of pixels above and left of it, and its own last row and column
    assert np.array_equal(contour(square(2, 2, 2, 5)), expected)
    assert not contour(np.ones((5, 5))).any()  # the border of the frame is no contour


def test_dilation_is_by_a_disk():
    point = np.zeros((7, 7), dtype=bool)
    point[3, 3] = True
    assert dilate(point, 1).sum() == 5
    assert dilate(point, 2).sum() == 13


def test_contour_accuracy_by_hand():
    """Contours of 4 x 4 squares have 16 pixels here: rings of 5 x 5."""
    assert contour(square(3, 3)).sum() == 16
    assert contour_accuracy(square(3, 3), square(3, 3), 1) == 1
    assert contour_accuracy(square(3, 3), square(3, 4), 1) == 1  # within one pixel
    # moved by 3: of each ring 2 x 2 pixels of the rows and one column lie within a pixel of the other
    found, true = contour(square(3, 2)), contour(square(3, 5))
    near = sum(
        any(abs(r - y) + abs(c - x) <= 1 for y, x in zip(*np.nonzero(true), strict=True))
        for r, c in zip(*np.nonzero(found), strict=True)
    )
    assert contour_accuracy(square(3, 2), square(3, 5), 1) == pytest.approx(near / 16)
    assert 0 < near < 16
    assert contour_accuracy(square(0, 0, 0), square(0, 0, 0)) == 1
    assert contour_accuracy(square(0, 0, 0), square(2, 2)) == 0
    # the tolerance is 0.8 % of the diagonal, rounded up: one pixel of a small frame
    assert contour_accuracy(square(3, 2), square(3, 5)) == contour_accuracy(square(3, 2), square(3, 5), 1)


def test_the_first_and_the_last_frame_are_not_scored():
    truth = np.stack([square(2, 2)] * 4) + 2 * np.stack([square(8, 8, 2)] * 4)
    masks = truth.copy()
    masks[0] = masks[-1] = 0
    masks[2][truth[2] == 2] = 0
    assert sequence_scores(masks, truth) == [{"J": 1, "F": 1}, {"J": 0.5, "F": 0.5}]
    truth[1, 0, 0], masks[1, 0, 0] = 255, 1  # where the truth is not known
    assert sequence_scores(masks, truth)[0]["J"] == 1
    with pytest.raises(ValueError, match="2, 12"):
        sequence_scores(masks[:2], truth[:2])


def test_labels_follow_features_that_move():
    """Each patch has a feature of its own, and the whole picture moves right by one patch per frame."""
    first = torch.eye(25).reshape(5, 5, 25)
    features = torch.stack([first.roll(frame, dims=1) for frame in range(4)])
    labels = torch.zeros(2, 5, 5)
    labels[1, 1:3, 0:2] = 1
    labels[0] = 1 - labels[1]
    found = propagate_labels(features, labels, PropagationSettings(neighbours=1, radius=4))
    for frame in range(4):
        assert torch.equal(found[frame], labels.roll(frame, dims=2))
    # labels that may not move so far stay behind
    assert not torch.equal(propagate_labels(features, labels, PropagationSettings(1, 1, 1))[3], labels.roll(3, dims=2))
    shares = propagate_labels(features, labels)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(4, 5, 5))


def test_near_patches_are_a_square_around_a_patch():
    near = is_near(4, 6, 1)
    assert near.sum(dim=1).tolist()[:2] == [4, 6]
    assert near[7].nonzero()[:, 0].tolist() == [0, 1, 2, 6, 7, 8, 12, 13, 14]


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_teachers) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("image")
    sizes = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(folder)
    return {"image": str(folder), "video": tiny_teachers["video"]}


def test_every_frame_has_patches_of_its_own(models):
    frames = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    image, video = (Encoder(name, EncoderArguments(path), image_frames=2) for name, path in models.items())
    features = frame_features(image, frames)
    assert features.shape == (5, 4, 4, 32)
    clip = torch.from_numpy(frames[3:5]).movedim(-1, 1)[None]
    torch.testing.assert_close(features[3:5], image(clip).reshape(2, 4, 4, 32), atol=1e-5, rtol=1e-4)
    assert frame_features(video, frames).shape == (5, 4, 4, 32)  # two frames, each twice, per clip of four


def write_davis(folder):
    """A bright square that moves over a dark ground, in the layout of DAVIS."""
    names = []
    for name, step in (("slow", 1), ("fast", 3)):
        names.append(name)
        for kind in ("JPEGImages", "Annotations"):
            (folder / kind / "480p" / name).mkdir(parents=True)
        for i in range(4):
            mask = square(10, 4 + step * i, 14, 48)
            pixels = np.where(mask[..., None], 230, 40).repeat(3, axis=2).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "JPEGImages/480p" / name / f"{i:05d}.jpg")
            image = Image.fromarray(mask, mode="P")
            image.putpalette([0, 0, 0, 128, 0, 0])
            image.save(folder / "Annotations/480p" / name / f"{i:05d}.png")
    (folder / "ImageSets/2017").mkdir(parents=True)
    (folder / "ImageSets/2017/val.txt").write_text("\n".join(names) + "\n")


def test_sequences_are_tracked_and_the_recipe_writes_the_table(models, tmp_path, monkeypatch):
    write_davis(tmp_path / "davis")
    (name, frames, masks), (other, _, _) = read_sequences(tmp_path / "davis")
    assert (name, other, frames.shape, masks.shape) == ("slow", "fast", (4, 48, 48, 3), (4, 48, 48))
    encoder = Encoder("image", EncoderArguments(models["image"], image_size=96), image_frames=1)
    found = track_objects(encoder, frames, masks[0])
    assert np.array_equal(found[0], masks[0])
    assert sequence_scores(found, masks)[0]["J"] > 0.5
    spec = importlib.util.spec_from_file_location("propagate_recipe", ROOT / "recipes" / "propagate.py")
    recipe = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, recipe)
    spec.loader.exec_module(recipe)
    words = [f"--models.{name}={path}" for name, path in models.items()]
    recipe.main([*words, "--davis", str(tmp_path / "davis"), "--output_dir", str(tmp_path / "out")])
    table = pd.read_csv(tmp_path / "out" / "propagation.csv")
    assert table["model"].tolist() == ["image", "video"]
    assert table["J&F"].tolist() == pytest.approx(((table["J"] + table["F"]) / 2).tolist())
    objects = pd.read_csv(tmp_path / "out" / "objects.csv")
    assert len(objects) == 4


def test_what_is_no_davis_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"ImageSets/2017/val\.txt"):
        list(read_sequences(tmp_path))
    write_davis(tmp_path)
    (tmp_path / "Annotations/480p/fast/00002.png").unlink()
    with pytest.raises(ValueError, match=r"00002\.png"):
        list(read_sequences(tmp_path))
    with pytest.raises(ValueError, match="radius=0"):
        PropagationSettings(radius=0)
