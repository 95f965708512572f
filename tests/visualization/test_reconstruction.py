"""Reconstructions: the exact inverse of the targets, only masked patches are predicted, for images and clips."""

import numpy as np
import pytest
import torch

from mvd_hf import MVDConfig, MVDForFeatureDistillation, MVDForPixelReconstruction, tube_mask
from mvd_hf.model.patches_mvd import pixel_targets
from mvd_hf.model.video_reading import VideoReader
from mvd_hf.visualization.reconstruction import (
    MASK_BRIGHTNESS,
    ReconstructionArguments,
    denormalize_targets,
    draw_masks,
    join_patches,
    reconstruct,
    write_reconstruction,
)

SIZES = {
    "image_size": 16,
    "patch_size": 4,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
}


def config_of(kind: str, **fields) -> MVDConfig:
    frames = {"num_frames": 4} if kind == "videomae" else {}
    return MVDConfig.from_name(f"{kind}-b", **SIZES, **frames, **fields)


def clips_for(config: MVDConfig, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (count, config.num_frames, 3, 16, 16)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("kind", ["videomae", "mae"])
@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_perfect_predictions_give_the_clip_back(kind, norm_pix_loss):
    config = config_of(kind, norm_pix_loss=norm_pix_loss, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4])
    clips = clips_for(config)
    pixels = denormalize_targets(pixel_targets(clips, config), clips, config)
    torch.testing.assert_close(join_patches(pixels, config.grid, config), clips.float() / 255, atol=1e-5, rtol=0)


def test_the_truths_mean_and_contrast_are_put_back():
    config = config_of("videomae")
    clips = clips_for(config)
    blank = denormalize_targets(torch.zeros(2, 32, 2 * 4 * 4 * 3), clips, config)
    pixels = join_patches(blank, config.grid, config)
    patch = clips[0, :2, 1, :4, :4].float() / 255
    torch.testing.assert_close(pixels[0, :2, 1, :4, :4], patch.mean().expand(2, 4, 4))


@pytest.mark.parametrize(("kind", "num_frames"), [("videomae", 4), ("videomae", 8), ("mae", 3)])
def test_only_masked_patches_are_predicted(kind, num_frames):
    torch.manual_seed(0)
    config = config_of(kind)
    model = MVDForPixelReconstruction(config).eval()
    frames = clips_for(config, num_frames // config.num_frames).flatten(0, 1)
    mask = draw_masks(config, num_frames // config.num_frames, None, seed=1)
    result = reconstruct(model, frames, mask)
    masked = mask.view(-1, *config.grid).repeat_interleave(config.tubelet_size, 1).flatten(0, 1)
    masked = masked.repeat_interleave(4, 1).repeat_interleave(4, 2).numpy()
    truth = frames.permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(result.truth, truth)
    np.testing.assert_array_equal(result.predicted[~masked], truth[~masked])
    np.testing.assert_array_equal(result.masked[~masked], truth[~masked])
    assert (result.masked[masked] == MASK_BRIGHTNESS).all()
    assert (result.predicted[masked] != truth[masked]).mean() > 0.9
    clips = frames.unflatten(0, (-1, config.num_frames))
    assert result.loss == pytest.approx(model(clips, bool_masked_pos=mask).loss.item(), rel=1e-5)


def test_perfect_predictions_of_a_model_reconstruct_the_clip(monkeypatch):
    config = config_of("videomae")
    model = MVDForPixelReconstruction(config).eval()
    clips, mask = clips_for(config, 1), tube_mask(config.grid, 0.75)[None]
    targets = pixel_targets(clips, config)[mask][None]
    monkeypatch.setattr(model.decoder, "forward", lambda *args, **kwargs: targets)
    result = reconstruct(model, clips[0], mask)
    np.testing.assert_array_equal(result.predicted, result.truth)
    assert result.loss == 0


def test_masks_have_the_models_own_ratio_by_default():
    config = config_of("videomae")
    masks = draw_masks(config, 3, None, seed=0)
    assert masks.shape == (3, 32)
    assert masks.sum(dim=1).tolist() == [config.num_masked_patches] * 3
    assert (masks[0] == draw_masks(config, 1, None, seed=0)[0]).all()
    assert not (masks[0] == masks[1]).all()
    assert draw_masks(config, 1, 0.5, seed=0).sum() == 16


@pytest.mark.parametrize("kind", ["videomae", "mae"])
def test_figure_film_and_arrays_are_written(kind, toy_folder, tmp_path):
    MVDForPixelReconstruction(config_of(kind)).save_pretrained(tmp_path / "model")
    options = {"video": f"{toy_folder}/validation/0000.mp4", "stride": 2, "output": str(tmp_path / "made.png")}
    path, *_ = write_reconstruction(ReconstructionArguments(model=str(tmp_path / "model"), num_frames=3, **options))
    assert path.read_bytes().startswith(b"\x89PNG")
    frames = 4 if kind == "videomae" else 3
    with VideoReader(path.with_suffix(".mp4")) as reader:
        assert len(reader) == frames
    with np.load(path.with_suffix(".npz")) as arrays:
        assert arrays["predicted"].shape == (frames, 16, 16, 3)


def test_what_is_missing_is_named(tmp_path, toy_folder):
    with pytest.raises(ValueError, match="--model"):
        write_reconstruction(ReconstructionArguments(video="x.mp4"))
    with pytest.raises(ValueError, match="--video"):
        write_reconstruction(ReconstructionArguments(model="me/model"))
    with pytest.raises(ValueError, match=r"x\.mp4"):  # without a look at the Hub
        write_reconstruction(ReconstructionArguments(model="me/model", video="x.mp4"))
    video = f"{toy_folder}/validation/0000.mp4"
    with pytest.raises(ValueError, match="outputs/none"):
        write_reconstruction(ReconstructionArguments(model="outputs/none", video=video))
    MVDForFeatureDistillation(config_of("videomae")).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"MVDForFeatureDistillation.*recipes/pretrain\.py"):
        write_reconstruction(ReconstructionArguments(model=str(tmp_path), video=video))
    config = config_of("videomae")
    with pytest.raises(ValueError, match=r"3 frames .* 4"):
        reconstruct(MVDForPixelReconstruction(config), clips_for(config)[0, :3], torch.zeros(1, 32, dtype=torch.bool))
