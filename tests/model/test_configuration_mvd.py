"""The configuration: published sizes, derived fields, the round trip through JSON, refused values."""

import json

import pytest
from huggingface_hub.errors import StrictDataclassError

from mvd_hf import MVDConfig, MVDForFeatureDistillation, MVDForPixelReconstruction, MVDForVideoClassification, MVDModel
from tiny_models import tiny_config

# width, layers, heads of the encoder, then of the decoder
SIZES = {
    "mvd-s": (384, 12, 6, 384, 2, 6),
    "mvd-b": (768, 12, 12, 768, 2, 12),
    "mvd-l": (1024, 24, 16, 512, 4, 8),
    "mvd-h": (1280, 32, 16, 640, 8, 8),
    "videomae-s": (384, 12, 6, 192, 4, 3),
    "videomae-b": (768, 12, 12, 384, 4, 6),
    "videomae-l": (1024, 24, 16, 512, 12, 8),
    "videomae-h": (1280, 32, 16, 640, 12, 8),
    "mae-s": (384, 12, 6, 512, 8, 16),
    "mae-b": (768, 12, 12, 512, 8, 16),
    "mae-l": (1024, 24, 16, 512, 8, 16),
    "mae-h": (1280, 32, 16, 512, 8, 16),
}
# what all sizes of a family share
FAMILIES = {
    "mvd": {
        "position_embedding_type": "spacetime",
        "use_class_token": False,
        "key_bias": False,
        "decoder_embed_bias": True,
        "mask_ratio": 0.9,
        "mask_type": "tube",
    },
    "videomae": {
        "position_embedding_type": "flat",
        "use_class_token": False,
        "key_bias": False,
        "decoder_embed_bias": False,
        "mask_ratio": 0.9,
        "mask_type": "tube",
        "pixel_target": "videomae",
    },
    "mae": {
        "position_embedding_type": "space",
        "use_class_token": True,
        "key_bias": True,
        "decoder_embed_bias": True,
        "mask_ratio": 0.75,
        "mask_type": "random",
        "pixel_target": "mae",
    },
}
TEACHER_WIDTHS = {"mvd-s": 768, "mvd-b": 768, "mvd-l": 1024, "mvd-h": 1280}
DROP_PATH_RATES = {"mvd-s": 0.1, "mvd-b": 0.1, "mvd-l": 0.1, "mvd-h": 0.2}


def assert_fields(config: MVDConfig, **expected):
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize("name", SIZES)
def test_a_named_size_is_the_published_one(name):
    width, layers, heads, decoder_width, decoder_layers, decoder_heads = SIZES[name]
    family = name.split("-")[0]
    side = 16 if name == "mae-h" else 14
    config = MVDConfig.from_name(name)
    assert_fields(
        config,
        image_size=224,
        num_channels=3,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        decoder_hidden_size=decoder_width,
        decoder_num_hidden_layers=decoder_layers,
        decoder_num_attention_heads=decoder_heads,
        decoder_intermediate_size=4 * decoder_width,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        drop_path_rate=DROP_PATH_RATES.get(name, 0.0),
        norm_pix_loss=True,
        patch_size=224 // side,
        num_frames=1 if family == "mae" else 16,
        tubelet_size=1 if family == "mae" else 2,
        grid=(1 if family == "mae" else 8, side, side),
        **FAMILIES[family],
    )
    if family == "mvd":
        assert config.teacher_dims == {"image": TEACHER_WIDTHS[name], "video": TEACHER_WIDTHS[name]}


def test_overrides_replace_the_fields_of_a_named_size():
    config = MVDConfig.from_name("mvd-s", num_frames=8, drop_path_rate=0.3, teacher_dims={"clip": 512})
    assert_fields(config, num_frames=8, drop_path_rate=0.3, teacher_dims={"clip": 512}, hidden_size=384)


@pytest.mark.parametrize("name", ["mvd-xl", "dino-b", "mvd", "mvd_b", ""])
def test_unknown_name_is_refused_and_the_known_names_are_listed(name):
    with pytest.raises(ValueError, match=f"no model named '{name}'") as error:
        MVDConfig.from_name(name)
    assert all(known in str(error.value) for known in SIZES)


def test_defaults_are_the_base_student_of_the_paper():
    default, named = MVDConfig().to_dict(), MVDConfig.from_name("mvd-b").to_dict()
    assert named.pop("drop_path_rate") == 0.1
    assert default.pop("drop_path_rate") == 0.0
    assert default == named


def test_unset_widths_follow_the_encoder():
    config = MVDConfig(hidden_size=96, num_attention_heads=6)
    assert_fields(
        config,
        intermediate_size=384,
        decoder_hidden_size=96,
        decoder_num_attention_heads=6,
        decoder_intermediate_size=384,
        teacher_dims={"image": 768, "video": 768},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    config = MVDConfig(hidden_size=96, num_attention_heads=6, intermediate_size=100, decoder_hidden_size=48)
    assert_fields(config, intermediate_size=100, decoder_hidden_size=48, decoder_intermediate_size=192)


def test_two_configs_share_no_mutable_default():
    first, second = MVDConfig(), MVDConfig()
    first.teacher_dims["clip"] = 512
    first.image_mean[0] = 0.0
    assert second.teacher_dims == {"image": 768, "video": 768}
    assert second.image_mean[0] == 0.485
    assert MVDConfig().image_mean[0] == 0.485


@pytest.mark.parametrize(
    ("fields", "frame_size", "grid"),
    [
        ({}, (224, 224), (8, 14, 14)),
        ({"image_size": (96, 160), "num_frames": 8}, (96, 160), (4, 6, 10)),
        ({"image_size": [32, 48], "patch_size": 8, "tubelet_size": 4}, (32, 48), (4, 4, 6)),
        ({"image_size": 196, "patch_size": 14, "num_frames": 1, "tubelet_size": 1}, (196, 196), (1, 14, 14)),
    ],
)
def test_grid_counts_patches_in_time_rows_columns(fields, frame_size, grid):
    config = MVDConfig(**fields)
    assert_fields(config, frame_size=frame_size, grid=grid, num_patches=grid[0] * grid[1] * grid[2])


@pytest.mark.parametrize(
    ("name", "fields", "masked"),
    [
        ("mvd-b", {}, 1408),
        ("mvd-b", {"mask_type": "random"}, 1411),
        ("mvd-b", {"mask_ratio": 0.75}, 1176),
        ("mae-b", {}, 147),
        ("mae-h", {}, 192),
    ],
)
def test_number_of_masked_patches_is_the_official_one(name, fields, masked):
    assert MVDConfig.from_name(name, **fields).num_masked_patches == masked


@pytest.mark.parametrize(("ratio", "masked"), [(0.0, 0), (0.01, 0), (1.0, 16), (-0.5, -8), (1.5, 24)])
def test_mask_ratio_that_masks_all_or_nothing_is_refused(ratio, masked):
    with pytest.raises(ValueError, match=f"mask_ratio={ratio} masks {masked} of 16 "):
        _ = tiny_config(mask_ratio=ratio).num_masked_patches


@pytest.mark.parametrize(
    "config",
    [
        MVDConfig.from_name("mae-h", num_labels=7),
        tiny_config(image_size=(32, 16), teacher_dims={"clip": 5, "dino": 7}),
        tiny_config(image_mean=0.5, image_std=(0.1, 0.2, 0.3)),
        tiny_config(id2label={0: "jump", 1: "run"}, problem_type="multi_label_classification", drop_path_rate=1),
        tiny_config(num_labels=5, label_heads={"verb": 2, "noun": 3}),
    ],
)
def test_config_survives_the_round_trip_through_json(config, tmp_path):
    config.save_pretrained(tmp_path)
    loaded = MVDConfig.from_pretrained(tmp_path)
    original, reloaded = (json.loads(c.to_json_string(use_diff=False)) for c in (config, loaded))
    assert reloaded == original
    assert_fields(loaded, frame_size=config.frame_size, grid=config.grid, id2label=config.id2label)
    assert list(loaded.label_heads) == list(config.label_heads) == sorted(config.label_heads)
    assert ("label_heads" in json.loads((tmp_path / "config.json").read_text())) == bool(config.label_heads)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "mvd"


REFUSED = [
    ({"num_frames": 5}, "num_frames=5 must be divisible by tubelet_size=2"),
    ({"image_size": 18}, "image height 18 must be divisible by patch_size=4"),
    ({"image_size": (16, 22)}, "image width 22 must be divisible by patch_size=4"),
    ({"num_attention_heads": 5}, "hidden_size=32 must be divisible by num_attention_heads=5"),
    ({"hidden_size": 24}, "hidden_size=24 must be divisible by 16 for the 'spacetime' position"),
    (
        {"hidden_size": 18, "num_attention_heads": 2, "position_embedding_type": "space"},
        "hidden_size=18 must be divisible by 4 for the 'space' position",
    ),
    (
        {"hidden_size": 21, "num_attention_heads": 3, "position_embedding_type": "flat"},
        "hidden_size=21 must be divisible by 2 for the 'flat' position",
    ),
    ({"encoder_init_std": 0.0}, "encoder_init_std=0.0 must be above 0"),
    ({"encoder_init_std": -1}, "encoder_init_std=-1 must be above 0"),
]


@pytest.mark.parametrize("model_class", [MVDModel, MVDForFeatureDistillation, MVDForVideoClassification])
@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_sizes_that_do_not_divide_are_refused_when_a_model_is_built(fields, message, model_class):
    config = tiny_config(**fields)
    with pytest.raises(ValueError, match=message):
        model_class(config)


@pytest.mark.parametrize("model_class", [MVDForFeatureDistillation, MVDForPixelReconstruction])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"decoder_hidden_size": 48, "decoder_num_attention_heads": 5},
            "decoder_hidden_size=48 must be divisible by decoder_num_attention_heads=5",
        ),
        ({"decoder_hidden_size": 40}, "decoder_hidden_size=40 must be divisible by 16 for the 'spacetime'"),
    ],
)
def test_decoder_sizes_are_refused_only_where_there_is_a_decoder(fields, message, model_class):
    config = tiny_config(**fields)
    MVDModel(config)
    MVDForVideoClassification(config)
    with pytest.raises(ValueError, match=message):
        model_class(config)


@pytest.mark.parametrize(
    ("fields", "value"),
    [
        ({"position_embedding_type": "learned"}, "learned"),
        ({"mask_type": "block"}, "block"),
        ({"pixel_target": "hog"}, "hog"),
        ({"num_frames": "sixteen"}, "sixteen"),
        ({"image_size": (16,)}, r"\(16,\)"),
    ],
)
def test_value_of_another_kind_is_refused_at_once(fields, value):
    with pytest.raises(StrictDataclassError, match=value):
        MVDConfig(**fields)


@pytest.mark.parametrize("name", ["a.b", "two words", "", "keys", "forward", "training", "_modules"])
def test_student_refuses_teachers_that_cannot_name_a_decoder(name):
    for teachers, named in (({name: 8}, f"'{name}'"), ({}, "teacher_dims")):
        with pytest.raises(ValueError, match=named):
            MVDForFeatureDistillation(tiny_config(teacher_dims=teachers))


@pytest.mark.parametrize(("keep", "decoded"), [(1, 1408), (1.0, 1408), (0.5, 704), (0.25, 352), (0.001, 1)])
def test_a_part_of_the_masked_patches_is_decoded(keep, decoded):
    assert MVDConfig.from_name("mvd-b", decoder_keep=keep).num_decoded_patches == decoded
    assert MVDConfig.from_name("mvd-b").num_decoded_patches == 1408


@pytest.mark.parametrize(("keep", "decoded"), [(0, 0), (1e-4, 0), (1.5, 2112), (-0.5, -704)])
def test_a_part_that_decodes_nothing_or_more_than_all_is_refused(keep, decoded):
    with pytest.raises(ValueError, match=f"decoder_keep={keep} decodes {decoded} of 1408 masked patches"):
        _ = MVDConfig.from_name("mvd-b", decoder_keep=keep).num_decoded_patches


def test_a_named_size_takes_an_attention_implementation():
    assert MVDConfig.from_name("mvd-s", attn_implementation="eager")._attn_implementation == "eager"
