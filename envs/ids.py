"""What an id of a world may look like: gymnasium's spelling ID or MODULE:ID. Standard library alone."""

from __future__ import annotations

import re

MOST_CHARACTERS = 200
"""Of an id; names of files are made of it."""

_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


def split_id(env: str) -> tuple[str, str]:
    """(module, id) of MODULE:ID; the module is empty where none is named."""
    module, _, name = env.rpartition(":")
    return module.strip(), name


def well_formed(env: str) -> bool:
    """Whether `env` is ID or MODULE:ID on one line, with a module that Python can import by name."""
    if len(env) > MOST_CHARACTERS or not env.isprintable():
        return False
    if ":" not in env:
        return bool(env.strip())
    module, name = split_id(env)
    return bool(_MODULE.fullmatch(module)) and bool(name.strip())
