"""The actions of AVA v2.2 and which of them are scored, and label maps in AVA's own format (.pbtxt)."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

# names of the class ids 1 to 80
NAMES = """
bend/bow (at the waist); crawl; crouch/kneel; dance; fall down; get up; jump/leap; lie/sleep; martial art; run/jog;
sit; stand; swim; walk; answer phone; brush teeth; carry/hold (an object); catch (an object); chop; climb (e.g., a
mountain); clink glass; close (e.g., a door, a box); cook; cut; dig; dress/put on clothing; drink; drive (e.g., a
car, a truck); eat; enter; exit; extract; fishing; hit (an object); kick (an object); lift/pick up; listen (e.g., to
music); open (e.g., a window, a car door); paint; play board game; play musical instrument; play with pets; point to
(an object); press; pull (an object); push (an object); put down; read; ride (e.g., a bike, a car, a horse); row
boat; sail boat; shoot; shovel; smoke; stir; take a photo; text on/look at a cellphone; throw; touch (an object);
turn (e.g., a screwdriver); watch (e.g., TV); work on a computer; write; fight/hit (a person); give/serve (an object)
to (a person); grab (a person); hand clap; hand shake; hand wave; hug (a person); kick (a person); kiss (a person);
lift (a person); listen to (a person); play with kids; push (another person); sing to (e.g., self, a person, a
group); take (an object) from (a person); talk to (e.g., self, a person, a group); watch (a person)
"""
AVA_ACTIONS = {number: name.strip() for number, name in enumerate(NAMES.replace("\n", " ").split(";"), start=1)}
# the 60 class ids of the ActivityNet 2019 label map, which alone are scored: the others are too rare
NOT_SCORED = (2, 16, 18, 19, 21, 23, 25, 31, 32, 33, 35, 39, 40, 42, 44, 50, 53, 55, 71, 75)
SCORED_ACTIONS = tuple(number for number in AVA_ACTIONS if number not in NOT_SCORED)

LabelMap = str | os.PathLike | Mapping[int, str] | Iterable[int]


def read_label_map(path: str | os.PathLike) -> dict[int, str]:
    """Names of class ids from a label map: `item { name: "sit" id: 11 }`, or `label { name: ... label_id: ... }`.

    Raises:
        ValueError: if the file cannot be read, holds no class, or gives one id twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"The label map {str(path)!r} cannot be read: {error}") from error
    actions: dict[int, str] = {}
    strings = r'"(?:[^"\\]|\\.)*"'
    for body in re.findall(rf"\{{((?:{strings}|[^{{}}])*)\}}", text):
        name = re.search(rf"\bname:\s*({strings})", body)
        number = re.search(r"\b(?:label_)?id:\s*(\d+)", re.sub(strings, '""', body))
        if name is None or number is None:
            raise ValueError(
                f"The label map {str(path)!r} has an entry without name or id: {' '.join(body.split())!r}."
            )
        if int(number[1]) in actions:
            raise ValueError(f"The label map {str(path)!r} gives the class id {number[1]} twice.")
        actions[int(number[1])] = re.sub(r"\\(.)", r"\1", name[1][1:-1])
    if not actions:
        raise ValueError(
            f'The label map {str(path)!r} has no entry: write item {{ name: "sit" id: 11 }} for each action.'
        )
    if min(actions) < 1:
        raise ValueError(f"The label map {str(path)!r} has the class id 0; ids count from 1.")
    return dict(sorted(actions.items()))


def named_actions(source: LabelMap | None, default: Mapping[int, str]) -> dict[int, str]:
    """Class ids and their names, from a file, a mapping, ids alone, or the default."""
    if source is None:
        return dict(default)
    if isinstance(source, str | os.PathLike):
        return read_label_map(source)
    names = source if isinstance(source, Mapping) else {number: default.get(number, str(number)) for number in source}
    return {int(number): name for number, name in names.items()}
