"""Reading a YAML file in which every value is the word that stands there. Imports no torch."""

from pathlib import Path
from typing import Any

from agents.config import shown
from experiments.json_file import read_text

MOST_BYTES = 2**18
DEEPEST = 20
"""Levels of nesting."""


def read_yaml(field: str, path: Path) -> Any:
    """What the YAML file `path` holds, as dicts, lists and str: 1e-4, off and 010 are words as they stand.

    Raises ValueError, naming `field`, where it is no file, cannot be read, is too large or is no such YAML.
    """
    text = read_text(field, path, MOST_BYTES)
    import yaml

    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise yaml.YAMLError("aliases (*NAME) are not taken")
        return _built(yaml.compose(text), 0)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        why = f"{error.problem or error.context}{place}"
    except yaml.YAMLError as error:
        why = str(error).splitlines()[0]
    except RecursionError:
        why = "nested too deeply"
    raise ValueError(f"{field} = {shown(str(path))}: is not YAML that can be read ({why})")


def _built(node: Any, depth: int) -> Any:
    """What a node of PyYAML's stands for. Raises RecursionError beyond `DEEPEST`, and YAMLError for a key that is no
    word or stands twice."""
    import yaml

    if depth > DEEPEST:
        raise RecursionError
    if node is None or isinstance(node, yaml.ScalarNode):
        return "" if node is None else node.value
    if isinstance(node, yaml.SequenceNode):
        return [_built(part, depth + 1) for part in node.value]
    found: dict[str, Any] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.value in found:
            why = "a key must be a word" if not isinstance(key, yaml.ScalarNode) else f"{key.value!r} stands twice"
            raise yaml.MarkedYAMLError(problem=why, problem_mark=key.start_mark)
        found[key.value] = _built(value, depth + 1)
    return found
