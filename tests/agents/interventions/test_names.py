"""What the package hands out, what it shows to editors, and that neither brings torch."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from agents import interventions

ROOT = Path(__file__).parents[3]
SOURCE = Path(interventions.__file__)
FOR_OWN = {"Forward", "Intervention", "Slots", "Surgery", "UnitSet"}


def shown_to_editors():
    """{name: file} of the imports that only a type checker makes."""
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    block = next(part for part in tree.body if isinstance(part, ast.If) and ast.unparse(part.test) == "TYPE_CHECKING")
    return {line.names[0].name: line.module.rpartition(".")[2] for line in block.body}


def test_every_documented_intervention_is_shown_and_handed_out():
    page = (ROOT / "docs" / "interventions.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`.*?) \|", page, flags=re.M)
    documented = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)} & set(interventions.NAMES)
    shown = shown_to_editors()
    assert documented == {file for name, file in shown.items() if name not in FOR_OWN}
    for name, file in shown.items():
        assert getattr(interventions, name).__module__ == f"agents.interventions.{file}"
        assert name in FOR_OWN or getattr(interventions, name).name == file


def test_names_are_listed_without_torch():
    code = "import sys, agents.interventions as i; print(*dir(i)); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(shown_to_editors()) <= set(done.stdout.split())


@pytest.mark.parametrize("name", ["linear", "Tensor", "HiddenLayer", "Lifecycle", "initialise_adam", "_Distance", "no"])
def test_nothing_else_is_handed_out(name):
    with pytest.raises(AttributeError, match=f"has no attribute '{name}'"):
        getattr(interventions, name)
    with pytest.raises(ImportError):
        exec(f"from agents.interventions import {name}")
