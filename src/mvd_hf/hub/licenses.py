"""Licenses of weights: what they restrict, and whether the models behind a checkpoint have stricter ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from huggingface_hub import HfApi
from huggingface_hub.utils import httpx

# names of the Hub
PERMISSIVE = {
    *("apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "isc", "zlib", "unlicense"),
    *("cc0-1.0", "wtfpl", "afl-3.0", "artistic-2.0", "bsl-1.0", "ms-pl", "ncsa", "postgresql", "pddl", "odc-by"),
    *("cdla-permissive-1.0", "cdla-permissive-2.0"),
}
SHARE_ALIKE = ("gpl", "lgpl", "agpl", "mpl", "epl", "eupl", "osl", "odbl", "cdla-sharing", "gfdl")
CREATIVE_COMMONS = {"nc": "no commercial use", "sa": "share alike", "nd": "no changed versions"}


def restrictions(license: str) -> set[str] | None:
    """Restrictions of a license beyond naming the authors; `None` if the license is not known here."""
    if license in PERMISSIVE:
        return set()
    if license.startswith("cc-by"):
        return {CREATIVE_COMMONS[part] for part in license.split("-") if part in CREATIVE_COMMONS}
    if license.startswith(SHARE_ALIKE):
        return {"share alike"}
    return None


def check_license(license: str | None, name: str | None = None, link: str | None = None) -> str:
    """Return the license, or raise ValueError if it is missing, or is `other` without a name and a link."""
    if not license:
        raise ValueError(
            "Nothing is published without a license: give the license of the weights by its name on the Hub, such as "
            "license=apache-2.0 or license=cc-by-nc-4.0."
        )
    if license == "other" and not (name and link):
        raise ValueError("license=other needs license_name and license_link.")
    return license


def license_in_words(license: str, name: str | None, link: str | None) -> str:
    """A license as a card names it."""
    return f"[{name}]({link})" if license == "other" else license


def hub_license(model: str, api: HfApi) -> str | None:
    """The license of a model of the Hub; `None` if it has none or the Hub does not answer."""
    try:
        card = api.model_info(model).card_data
    except (OSError, httpx.HTTPError):  # missing or private model, no network, offline mode
        return None
    return None if card is None else card.license


@dataclass
class SourceModel:
    """A model that a run started or learned from.

    Args:
        part: its part in the run: `base`, or the name of a teacher; `image of base` is a teacher of the base.
        model: Hub id, or name of a local folder.
        is_local: whether it was a local folder.
        license: of its weights, if it is known.
        custom_code: which code of others it ran, if any.
    """

    part: str
    model: str
    is_local: bool
    license: str | None
    custom_code: str | None = None

    @property
    def link(self) -> str:
        """The model as a card names it."""
        return self.model if self.is_local else f"[{self.model}](https://huggingface.co/{self.model})"


def source_models(run: Mapping | None, api: HfApi) -> list[SourceModel]:
    """The models that a recorded run started and learned from, each followed by its own source models."""
    sources = []
    for part, found in ({} if run is None else run["sources"]).items():
        license = found.get("license")
        if license is None and not found["is_local"]:
            license = hub_license(found["model"], api)
        sources.append(SourceModel(part, found["model"], found["is_local"], license, found.get("custom_code")))
        for inner in source_models(found.get("run"), api):
            sources.append(
                SourceModel(f"{inner.part} of {part}", inner.model, inner.is_local, inner.license, inner.custom_code)
            )
    return sources


def license_warnings(license: str, sources: Sequence[SourceModel]) -> list[str]:
    """A sentence for each source model whose license is not known or stricter than `license`."""
    warnings = []
    allowed = restrictions(license)
    for source in sources:
        if source.license == license:
            continue
        name = f"{source.model} ({source.part})"
        demanded = None if source.license is None else restrictions(source.license)
        if source.license is None:
            warnings.append(f"The license of {name} is not known: check that it allows {license}.")
        elif demanded is None or allowed is None:
            warnings.append(f"{name} is under {source.license}: check that it allows {license}.")
        elif demanded - allowed:
            stricter = ", ".join(sorted(demanded - allowed))
            warnings.append(f"{name} is under {source.license} ({stricter}), which is stricter than {license}.")
    return warnings
