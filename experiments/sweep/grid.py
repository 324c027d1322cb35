"""Fields of a study's trials: those that are shared, and those that a grid combines. Imports no torch."""

from collections.abc import Mapping
from typing import Any

from agents.config import require
from agents.interventions import NAMES
from experiments.sweep.words import MOST, field_name, is_list, listed, mapping_of, text_of, word_of

NAMING = ("loss", "value-loss", "agent", "env")
"""Fields whose values are names that say enough."""

Fields = dict[str, str]
"""Values as they stand on a command line, by flag without dashes; several words with commas between them."""


def fields_of(where: str, value: Any) -> Fields:
    """What the mapping `value` sets, nested ones with dots between the names."""
    found: Fields = {}
    for written, part in mapping_of(where, value).items():
        name = field_name(f"{where}.{written}", written)
        if name == "interventions":
            [(_, more)] = interventions_of(f"{where}.{written}", part, several=False)
        elif isinstance(part, Mapping):
            more = {f"{name}.{inner}": word for inner, word in fields_of(f"{where}.{written}", part).items()}
        else:
            more = {name: word_of(f"{where}.{written}", part)}
        for twice in found.keys() & more.keys():
            require(False, f"{where}.{twice}", more[twice], "given once")
        found |= more
    return found


def laid_over(below: Fields, above: Fields) -> Fields:
    """The fields `below` with those `above` in their places; of other interventions no parameters are left."""
    if "interventions" in above:
        below = {name: word for name, word in below.items() if name.partition(".")[0].replace("-", "_") not in NAMES}
    return {**below, **above}


def axis_of(axis: str, where: str, values: Any) -> tuple[tuple[str, Fields], ...]:
    """The `values` of the field `axis` in a grid: (what an arm is called by it, the fields that it sets)."""
    require(is_list(values), where, values, "a list of values")
    require(0 < len(values) <= MOST, where, f"{len(values)} values", f"from 1 to {MOST:,}")
    found: list[tuple[str, Fields]] = []
    for value in values:
        if axis == "interventions":
            found += interventions_of(where, value)
            continue
        fields = fields_of(where, value if isinstance(value, Mapping) else {axis: value})
        require(axis in fields, where, value, f"a value, or a mapping that has {axis} and more fields")
        word = fields[axis]
        found.append((word if axis in NAMING else f"{axis}={word}", fields))
    labels = [label for label, _ in found]
    for label in labels:
        require(labels.count(label) == 1, where, label, "given once")
    return tuple(found)


def interventions_of(where: str, value: Any, several: bool = True) -> list[tuple[str, Fields]]:
    """Interventions that are used together, as (label, fields): one for each combination of their parameters' values,
    where `several` may be given. A label has the first parameter of each, and those that have several values."""
    found: list[tuple[str, Fields]] = [("", {"interventions": ""})]
    for one in listed(value):
        if not isinstance(one, Mapping):
            one = {name: {} for name in text_of(where, one).replace(",", " ").split()}
        for written, parameters in one.items():
            name = text_of(where, written).replace("-", "_")
            found = [(_after(label, "+", name), _listing(fields, name)) for label, fields in found]
            for place, (parameter, values) in enumerate(mapping_of(f"{where}.{name}", parameters).items()):
                flag, words = _parameter(where, name, parameter, values, several)
                said = place == 0 or len(words) > 1
                found = [
                    (
                        f"{label}{'.' if place == 0 else ','}{parameter}={word}" if said else label,
                        {**fields, flag: word},
                    )
                    for label, fields in found
                    for word in words
                ]
    return [
        (label or "none", {**fields, "interventions": fields["interventions"] or "none"}) for label, fields in found
    ]


def _after(before: str, between: str, name: str) -> str:
    return f"{before}{between}{name}" if before else name


def _listing(fields: Fields, name: str) -> Fields:
    return {**fields, "interventions": _after(fields["interventions"], ",", name)}


def _parameter(where: str, name: str, parameter: Any, values: Any, several: bool) -> tuple[str, list[str]]:
    """(the flag of an intervention's parameter, the words to be tried); one of a combination's says whose it is."""
    dotted = text_of(where, parameter) if "." in str(parameter) else f"{name}.{parameter}"
    place = f"{where}.{dotted}"
    words = [word_of(place, value) for value in listed(values)]
    require(bool(words) and (several or len(words) == 1), place, values, "one value" if not several else "some values")
    return field_name(place, dotted), words
