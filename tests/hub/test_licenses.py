"""Licences: what they restrict, that there must be one, and where teachers are stricter."""

import pytest
from huggingface_hub import HfApi

from mvd_hf.hub.licenses import (
    Source,
    check_licence,
    hub_licence,
    licence_warnings,
    restrictions,
    sources_of,
)


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("apache-2.0", set()),
        ("mit", set()),
        ("cc0-1.0", set()),
        ("cc-by-4.0", set()),
        ("cc-by-nc-4.0", {"no commercial use"}),
        ("cc-by-nc-sa-4.0", {"no commercial use", "share alike"}),
        ("cc-by-nc-nd-4.0", {"no commercial use", "no changed versions"}),
        ("agpl-3.0", {"share alike"}),
        ("other", None),
        ("llama3", None),
    ],
)
def test_restrictions(licence, expected):
    assert restrictions(licence) == expected


@pytest.mark.parametrize("licence", [None, ""])
def test_there_must_be_a_licence(licence):
    with pytest.raises(ValueError, match=r"without a licence: give license"):
        check_licence(licence)


def test_another_licence_has_a_name_and_a_link():
    assert check_licence("mit") == "mit"
    assert check_licence("other", "Our terms", "https://example.org/terms") == "other"
    with pytest.raises(ValueError, match="license_name and license_link"):
        check_licence("other", "Our terms")


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


def test_sources_are_followed_to_their_own():
    found = sources_of(RUN, HfApi())
    assert [(source.part, source.model, source.licence) for source in found] == [
        ("image", "mae-b", "cc-by-nc-4.0"),
        ("base", "student", "apache-2.0"),
        ("video of base", "videomae-b", "cc-by-nc-sa-4.0"),
    ]
    assert sources_of(None, HfApi()) == []


def test_stricter_sources_are_told():
    warnings = licence_warnings("apache-2.0", sources_of(RUN, HfApi()))
    assert warnings == [
        "mae-b (image) is under cc-by-nc-4.0 (no commercial use), which is stricter than apache-2.0.",
        "videomae-b (video of base) is under cc-by-nc-sa-4.0 (no commercial use, share alike), which is stricter than "
        "apache-2.0.",
    ]
    assert len(licence_warnings("cc-by-nc-4.0", sources_of(RUN, HfApi()))) == 1
    assert licence_warnings("cc-by-nc-sa-4.0", sources_of(RUN, HfApi())) == []


def test_unknown_licences_are_told():
    sources = [Source("image", "a", True, None), Source("video", "b", True, "dinov3-license")]
    first, second = licence_warnings("mit", sources)
    assert first == "The licence of a (image) is not known: look whether it allows mit."
    assert second == "b (video) is under dinov3-license: look whether that allows mit."
    assert licence_warnings("other", [Source("image", "a", True, "mit")]) == [
        "a (image) is under mit: look whether that allows other."
    ]


def test_licences_of_models_of_the_hub_are_asked_for(hub):
    api = HfApi()
    for name, card in (("me/open", "---\nlicense: mit\n---\n"), ("me/bare", "---\ntags: [x]\n---\n")):
        api.create_repo(name, private=True)
        api.upload_file(path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id=name)
    assert hub_licence("me/open", api) == "mit"
    assert hub_licence("me/bare", api) is None
    assert hub_licence("me/nowhere", api) is None
    (source,) = sources_of({"sources": {"image": {"model": "me/open", "is_local": False}}}, api)
    assert source == Source("image", "me/open", False, "mit")
    assert source.link == "[me/open](https://huggingface.co/me/open)"


def test_without_network_a_licence_is_not_known(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub_licence("me/open", HfApi()) is None
