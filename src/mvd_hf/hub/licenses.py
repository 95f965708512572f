"""Licences of weights: what they forbid or demand, and where a model's teachers are stricter than the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from huggingface_hub import HfApi
from huggingface_hub.utils import httpx

# as the Hub writes them
PERMISSIVE = {
    *("apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "isc", "zlib", "unlicense"),
    *("cc0-1.0", "wtfpl", "afl-3.0", "artistic-2.0", "bsl-1.0", "ms-pl", "ncsa", "postgresql", "pddl", "odc-by"),
    *("cdla-permissive-1.0", "cdla-permissive-2.0"),
}
SHARE_ALIKE = ("gpl", "lgpl", "agpl", "mpl", "epl", "eupl", "osl", "odbl", "cdla-sharing", "gfdl")
CREATIVE_COMMONS = {"nc": "no commercial use", "sa": "share alike", "nd": "no changed versions"}


def restrictions(licence: str) -> set[str] | None:
    """What a licence forbids or demands beyond naming the authors; `None` if it is not one of those known here."""
    if licence in PERMISSIVE:
        return set()
    if licence.startswith("cc-by"):
        return {CREATIVE_COMMONS[part] for part in licence.split("-") if part in CREATIVE_COMMONS}
    if licence.startswith(SHARE_ALIKE):
        return {"share alike"}
    return None


def check_licence(licence: str | None, name: str | None = None, link: str | None = None) -> str:
    """The licence, if something can be published under it.

    Args:
        licence: as the Hub writes it, such as `apache-2.0`, `cc-by-nc-4.0` or `other`.
        name, link: of the licence, where it is `other`.

    Raises:
        ValueError: if there is none.
    """
    if not licence:
        raise ValueError(
            "Nothing is published without a licence: give license, as the Hub writes it, such as apache-2.0 or "
            "cc-by-nc-4.0, which are the terms of the weights and not of this program."
        )
    if licence == "other" and not (name and link):
        raise ValueError("license=other needs license_name and license_link.")
    return licence


def hub_licence(model: str, api: HfApi) -> str | None:
    """The licence of a model of the Hub; `None` if it has none or cannot be asked for it."""
    try:
        card = api.model_info(model).card_data
    except (OSError, httpx.HTTPError):  # no such model, not ours to see, no network, offline mode
        return None
    return None if card is None else card.license


@dataclass
class Source:
    """A model that a run started or learned from.

    Args:
        part: its part in the run: `base`, or a teacher's name; `image of base` for a teacher of the base.
        model: Hub id, or name of a local folder.
        is_local: whether it was a local folder.
        licence: of its weights, if it is known.
    """

    part: str
    model: str
    is_local: bool
    licence: str | None

    @property
    def link(self) -> str:
        """The model as a card names it."""
        return self.model if self.is_local else f"[{self.model}](https://huggingface.co/{self.model})"


def sources_of(run: Mapping | None, api: HfApi) -> list[Source]:
    """What a recorded run started and learned from, and what those models come from in turn.

    Args:
        run: see `mvd_hf.hub.run_record`.
        api: asked for the licences of models of the Hub.
    """
    sources = []
    for part, found in ({} if run is None else run["sources"]).items():
        licence = found.get("license")
        if licence is None and not found["is_local"]:
            licence = hub_licence(found["model"], api)
        sources.append(Source(part, found["model"], found["is_local"], licence))
        for inner in sources_of(found.get("run"), api):
            sources.append(Source(f"{inner.part} of {part}", inner.model, inner.is_local, inner.licence))
    return sources


def licence_warnings(licence: str, sources: Sequence[Source]) -> list[str]:
    """A sentence for each source whose licence is stricter than the model's `licence`, or is not known."""
    warnings = []
    own = restrictions(licence)
    for source in sources:
        if source.licence == licence:
            continue
        name = f"{source.model} ({source.part})"
        theirs = None if source.licence is None else restrictions(source.licence)
        if source.licence is None:
            warnings.append(f"The licence of {name} is not known: look whether it allows {licence}.")
        elif theirs is None or own is None:
            warnings.append(f"{name} is under {source.licence}: look whether that allows {licence}.")
        elif theirs - own:
            stricter = ", ".join(sorted(theirs - own))
            warnings.append(f"{name} is under {source.licence} ({stricter}), which is stricter than {licence}.")
    return warnings
