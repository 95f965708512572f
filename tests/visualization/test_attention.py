"""Attention of a patch: the model's own weights, drawn at their places, with the query marked."""

import numpy as np
import pytest
import torch

from mvd_hf import MVDConfig, MVDForVideoClassification, MVDModel
from mvd_hf.model.video_reading import VideoReader
from mvd_hf.visualization.attention import (
    QUERY_COLOR,
    AttentionArguments,
    choose_heads,
    choose_query,
    load_encoder,
    overlay_attention,
    query_attention,
    write_attention,
)


@pytest.mark.parametrize("use_class_token", [False, True])
def test_attention_is_the_models_own(tiny_student_config, use_class_token):
    torch.manual_seed(0)
    config = MVDConfig(**{**tiny_student_config.to_dict(), "use_class_token": use_class_token})
    config._attn_implementation = "eager"
    model = MVDModel(config).eval()
    clip = torch.randint(0, 256, (1, 4, 3, 32, 32), dtype=torch.uint8)
    all_weights = model(clip, output_attentions=True).attentions
    num_hooks = len(model.layers[-1].attention._forward_hooks)
    token = (1 * 4 + 2) * 4 + 3 + use_class_token
    for layer in (0, -1):
        attention = query_attention(model, clip, (1, 2, 3), layer)
        assert attention.shape == (2, 2, 4, 4)
        expected = all_weights[layer][0, :, token, int(use_class_token) :].view(2, 2, 4, 4)
        torch.testing.assert_close(attention, expected)
    if not use_class_token:
        torch.testing.assert_close(attention.sum(dim=(1, 2, 3)), torch.ones(2))
    assert len(model.layers[-1].attention._forward_hooks) == num_hooks  # ours is gone


def test_layers_patches_and_heads_that_do_not_exist_are_refused(tiny_student_config):
    model = MVDModel(tiny_student_config).eval()
    clip = torch.zeros(1, 4, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(ValueError, match="eager"):
        query_attention(model, clip, (0, 0, 0))
    model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match=r"layer=2 .*-2 to 1"):
        query_attention(model, clip, (0, 0, 0), layer=2)
    with pytest.raises(ValueError, match=r"\(2, 0, 0\).*\(2, 4, 4\)"):
        query_attention(model, clip, (2, 0, 0))
    with pytest.raises(ValueError, match=r"query=\[1, 2\]"):
        choose_query([1, 2], tiny_student_config)
    with pytest.raises(ValueError, match=r"head=3 .*0 to 2"):
        choose_heads(np.zeros((3, 2, 4, 4)), [3])
    with pytest.raises(ValueError, match="--model"):
        write_attention(AttentionArguments(video="x.mp4"))


def test_attention_is_drawn_at_its_place():
    attention = np.zeros((2, 2, 4))
    attention[1, 0, 3] = 0.5
    frames = np.full((4, 48, 96, 3), 100, dtype=np.uint8)
    overlaid = overlay_attention(frames, attention, (0, 1, 0))
    assert overlaid.shape == (4, 48, 96, 3)
    bright = overlaid.astype(int).sum(axis=-1) > 400
    assert bright[2:, :24, 72:].all()  # both frames of the slot
    marked = (overlaid == QUERY_COLOR).all(axis=-1)
    assert marked[:2, 24, :24].all()  # the query's frame, and only in its slot
    assert not marked[:2, 30:40, 6:18].any()
    assert not marked[2:].any()
    assert bright.sum() == 2 * 24 * 24 + marked.sum()
    small = overlay_attention(np.full((4, 8, 16, 3), 100, dtype=np.uint8), attention, (0, 1, 0))
    assert small.shape == overlaid.shape  # enlarged


def test_heads_and_their_mean():
    attention = np.random.default_rng(0).random((3, 2, 4, 4))
    assert list(choose_heads(attention, [2, 0])) == ["head 2", "head 0"]
    np.testing.assert_array_equal(choose_heads(attention, [2])["head 2"], attention[2])
    np.testing.assert_allclose(choose_heads(attention, None)["mean of 3 heads"], attention.mean(axis=0))


def test_figure_film_and_arrays_of_a_classifier_are_written(tiny_student_config, toy_folder, tmp_path):
    torch.manual_seed(0)
    MVDForVideoClassification(tiny_student_config).save_pretrained(tmp_path / "model")
    arguments = AttentionArguments(
        video=f"{toy_folder}/validation/0000.mp4",
        model=str(tmp_path / "model"),
        layer=0,
        heads=[1],
        output=str(tmp_path / "attention.png"),
    )
    path, *others = write_attention(arguments)
    assert others == [path.with_suffix(".npz"), path.with_suffix(".mp4")]
    assert path.read_bytes().startswith(b"\x89PNG")
    with VideoReader(path.with_suffix(".mp4")) as reader:
        assert len(reader) == 4
    with np.load(path.with_suffix(".npz")) as arrays:
        assert arrays["attention"].shape == (2, 2, 4, 4)
        assert arrays["query"].tolist() == [1, 2, 2]
    assert load_encoder(str(tmp_path / "model")).layernorm is None
