"""Licenses: restrictions, that there must be one, and warnings where source models are stricter."""

import pytest
from huggingface_hub import HfApi, constants

from mvd_hf.hub.licenses import (
    SourceModel,
    check_license,
    hub_license,
    license_warnings,
    restrictions,
    source_models,
)

RUN = {
    "sources": {
        "image": {"model": "mae-b", "is_local": True, "license": "cc-by-nc-4.0"},
        "base": {
            "model": "student",
            "is_local": True,
            "license": "apache-2.0",
            "run": {"sources": {"video": {"model": "videomae-b", "is_local": True, "license": "cc-by-nc-sa-4.0"}}},
        },
    }
}


def test_restrictions():
    expected = {
        "apache-2.0": set(),
        "cc0-1.0": set(),
        "cc-by-4.0": set(),
        "cc-by-nc-4.0": {"no commercial use"},
        "cc-by-nc-sa-4.0": {"no commercial use", "share alike"},
        "cc-by-nc-nd-4.0": {"no commercial use", "no changed versions"},
        "agpl-3.0": {"share alike"},
        "other": None,
        "llama3": None,
    }
    assert {license: restrictions(license) for license in expected} == expected


def test_there_must_be_a_license_and_other_ones_have_a_name_and_a_link():
    assert check_license("mit") == "mit"
    assert check_license("other", "Our terms", "https://example.org/terms") == "other"
    for missing in (None, ""):
        with pytest.raises(ValueError, match=r"license=apache-2\.0"):
            check_license(missing)
    with pytest.raises(ValueError, match="license_name and license_link"):
        check_license("other", "Our terms")


def test_source_models_are_followed_by_their_own():
    found = source_models(RUN, HfApi())
    assert [(source.part, source.model, source.license) for source in found] == [
        ("image", "mae-b", "cc-by-nc-4.0"),
        ("base", "student", "apache-2.0"),
        ("video of base", "videomae-b", "cc-by-nc-sa-4.0"),
    ]
    assert source_models(None, HfApi()) == []


def test_stricter_licenses_are_reported_with_the_restrictions():
    sources = source_models(RUN, HfApi())
    image, video = license_warnings("apache-2.0", sources)
    assert "mae-b (image)" in image
    assert "cc-by-nc-4.0 (no commercial use)" in image
    assert "videomae-b (video of base)" in video
    assert "(no commercial use, share alike)" in video
    assert len(license_warnings("cc-by-nc-4.0", sources)) == 1
    assert license_warnings("cc-by-nc-sa-4.0", sources) == []


def test_licenses_that_cannot_be_compared_are_reported():
    sources = [SourceModel("image", "a", True, None), SourceModel("video", "b", True, "dinov3-license")]
    unknown, unusual = license_warnings("mit", sources)
    assert "a (image)" in unknown
    assert "b (video) is under dinov3-license" in unusual
    (warning,) = license_warnings("other", [SourceModel("image", "a", True, "mit")])
    assert "a (image) is under mit" in warning


def test_licenses_are_looked_up_on_the_hub_unless_offline(hub, monkeypatch):
    api = HfApi()
    for name, card in (("me/open", "---\nlicense: mit\n---\n"), ("me/bare", "---\ntags: [x]\n---\n")):
        api.create_repo(name, private=True)
        api.upload_file(path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id=name)
    assert hub_license("me/bare", api) is None
    assert hub_license("me/nowhere", api) is None
    (source,) = source_models({"sources": {"image": {"model": "me/open", "is_local": False}}}, api)
    assert source == SourceModel("image", "me/open", False, "mit")
    assert source.link == "[me/open](https://huggingface.co/me/open)"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub_license("me/open", HfApi()) is None
