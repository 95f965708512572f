"""Saved configurations and processors name custom code only if it is saved beside them."""
# Copyright 2026 The mvd_hf authors. Licensed under the Apache License, Version 2.0.

import os
from pathlib import Path
from typing import Any

# attributes of a configuration or processor that name classes as `file.Class`
CODE_ATTRIBUTES = ("auto_map", "custom_pipelines")


def forget_absent_code(owner: Any, folder: str | os.PathLike):
    """Remove the names of classes whose file is not in the folder from a configuration or processor.

    A configuration loaded from a published checkpoint names the code of that checkpoint. Saved elsewhere by the
    installed package, it would name files that are not there.
    """

    def is_there(reference: str) -> bool:
        return "--" not in reference and (Path(folder) / f"{reference.partition('.')[0]}.py").is_file()

    for attribute in CODE_ATTRIBUTES:
        entries = owner.__dict__.pop(attribute, None) or {}
        kept = {
            name: entry
            for name, entry in entries.items()
            if is_there(entry["impl"] if isinstance(entry, dict) else entry)
        }
        if kept:
            setattr(owner, attribute, kept)


__all__ = ["forget_absent_code"]
