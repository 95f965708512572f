"""Encoders of a comparison: image models on frames, video models on clips, several layers, random weights, cost."""

import pytest
import torch
from transformers import AutoModel, Dinov2Config, Dinov2Model, VideoMAEConfig, VideoMAEModel

from mvd_hf import MVDConfig, MVDForFeatureDistillation
from mvd_hf.evaluation.encoders import Encoder, EncoderArguments, PixelEncoder, pool_tokens
from mvd_hf.training.costs import teacher_flops
from tiny_models import TINY

SIZES = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """An image model, a video model and a student of ours."""
    torch.manual_seed(0)
    student = {**TINY, "num_frames": 4, "teacher_dims": {"image": 32}}
    models = {
        "image": Dinov2Model(Dinov2Config(**SIZES, initializer_range=0.2)),
        "video": VideoMAEModel(VideoMAEConfig(**SIZES, intermediate_size=64, num_frames=4, initializer_range=0.2)),
        "student": MVDForFeatureDistillation(MVDConfig.from_name("mvd-b", **student)),
    }
    folder = tmp_path_factory.mktemp("models")
    for name, model in models.items():
        model.save_pretrained(folder / name)
    return {name: str(folder / name) for name in models}


def encoder(folder: str, **fields) -> Encoder:
    return Encoder("model", EncoderArguments(folder, **fields), image_frames=3)


def random_clips(count: int, frames: int, size: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (count, frames, 3, size, size), dtype=torch.uint8)


def normalized(clips: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    return (clips / 255 - mean) / std


def test_an_image_model_sees_every_frame_by_itself(folders):
    found, clips = encoder(folders["image"]), random_clips(2, 3)
    model = AutoModel.from_pretrained(folders["image"]).eval()
    with torch.no_grad():
        frames = model(normalized(clips).flatten(0, 1)).last_hidden_state[:, 1:]
    assert (found.num_frames, found.image_size, found.width) == (3, 32, 32)
    torch.testing.assert_close(found(clips), frames.reshape(2, 3 * 16, 32), atol=1e-5, rtol=1e-4)
    assert encoder(folders["image"], num_frames=5)(random_clips(1, 5)).shape == (1, 80, 32)


def test_a_video_model_sees_the_clip_with_as_many_frames_as_it_was_trained_with(folders):
    clips = random_clips(2, 4)
    for name in ("video", "student"):
        found = encoder(folders[name])
        assert found.num_frames == 4
        tokens = found(clips)
        assert tokens.shape == (2, 2 * 16, 32)
        assert not torch.allclose(found.pool(tokens), found.pool(found(clips.flip(1))), atol=1e-4)  # time matters


def test_layers_are_concatenated_in_the_order_given(folders):
    clips = random_clips(1, 3)
    for norm in ("pre", "post"):
        parts = [encoder(folders["image"], layers=[n], norm=norm)(clips) for n in (3, 1)]
        found = encoder(folders["image"], layers=[-1, 1], norm=norm)
        assert found.width == 64
        torch.testing.assert_close(found(clips), torch.cat(parts, dim=-1), atol=1e-5, rtol=1e-4)
    # later layers are not computed
    assert encoder(folders["image"], layers=[1]).num_parameters() < encoder(folders["image"]).num_parameters()
    for layers in ([4], [0], [1, 1], [-4]):
        with pytest.raises(ValueError, match=str(layers[0])):
            encoder(folders["image"], layers=layers)


def test_random_weights_follow_the_seed_and_keep_the_network(folders):
    clips = random_clips(1, 4)
    trained, random = encoder(folders["student"]), encoder(folders["student"], random_weights=True)
    assert random.num_parameters() == trained.num_parameters()
    assert torch.equal(random(clips), encoder(folders["student"], random_weights=True)(clips))
    assert not torch.allclose(random(clips), trained(clips), atol=1e-2)
    assert random.identity()["weights"] != trained.identity()["weights"]


def test_flops_are_those_of_the_cost_of_a_teacher(folders):
    student = MVDConfig.from_name("mvd-b", **TINY, num_frames=4)
    for name in ("video", "student"):
        found = encoder(folders[name])
        assert found.flops() == teacher_flops(found.teacher.config, student)
        assert found.clips_per_second(rounds=1) > 0


def test_frames_lie_over_the_same_span_whatever_their_number(folders):
    strides = {n: encoder(folders["image"], num_frames=n).processor("dense", 4).frame_sampling_rate for n in (4, 16)}
    assert strides == {4: 16, 16: 4}
    processor = encoder(folders["video"]).processor("uniform", 4, num_clips=2, num_crops=3)
    assert (processor.num_clips, processor.num_crops, processor.num_frames) == (2, 3, 4)


def test_what_features_depend_on_is_in_their_identity(folders):
    kinds = [{}, {"layers": [1]}, {"norm": "pre"}, {"image_size": 16}, {"random_weights": True}]
    identities = [str(encoder(folders["image"], **fields).identity()) for fields in kinds]
    assert len(set(identities)) == len(kinds)


def test_pixels_are_colors_of_small_frames():
    clips = random_clips(2, 4, 64)
    tokens = PixelEncoder()(clips)
    assert tokens.shape == (2, 1, 4 * 3 * 16 * 16)
    assert tokens[1, 0, 0] == pytest.approx(float(clips[1, 0, 0, :4, :4].float().mean() / 255))
    assert torch.equal(PixelEncoder().pool(tokens), tokens[:, 0])


def test_pooled_tokens_are_standardised_means():
    tokens = 5 + 3 * torch.randn(2, 7, 16)
    pooled = pool_tokens(tokens)
    assert pooled.mean(dim=1).abs().max() < 1e-5
    torch.testing.assert_close(pooled, torch.nn.LayerNorm(16, eps=1e-6)(tokens.mean(dim=1)).detach())


def test_impossible_models_are_refused():
    for fields in ({"norm": "both"}, {"dtype": "float8"}, {"image_size": 0}, {"layers": []}):
        ((name, value),) = fields.items()
        with pytest.raises(ValueError, match=rf"{name}='?{value if value != [] else ''}"):
            EncoderArguments("x", **fields)
    with pytest.raises(ValueError, match="nowhere"):
        encoder("./nowhere")
