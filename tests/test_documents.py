"""The documents: every link leads somewhere, and the README's table names what there is and nothing else."""

import re
from pathlib import Path
from typing import get_args

import pytest

from agents.interventions import COMBINATIONS, NAMES
from agents.kinds import KINDS
from envs.families import CHANGES, FAMILIES, family_of
from experiments.probe_names import probe_costs

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def without_code(text: str) -> str:
    return re.sub(r"```.*?```|^    .*?$|`[^`\n]+`", "", text, flags=re.S | re.M)


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings: small letters, blanks to hyphens, punctuation gone."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


LINKS = [(page, link) for page in PAGES for link in LINK.findall(without_code(page.read_text(encoding="utf-8")))]
WITHIN = [(page, link) for page, link in LINKS if not link.startswith("https://")]


def test_there_are_links_and_none_to_what_is_not_public():
    assert len(WITHIN) > 60
    assert not [link for _, link in WITHIN if "://" in link or link.startswith("/")]


@pytest.mark.parametrize(("page", "link"), WITHIN, ids=lambda value: value.name if isinstance(value, Path) else value)
def test_a_link_leads_somewhere(page, link):
    place, _, anchor = link.partition("#")
    target = (page.parent / place).resolve() if place else page
    assert target.exists() and ROOT in [target, *target.parents]
    if anchor:
        assert anchor in anchors(target), sorted(anchors(target))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_linked_to(page):
    targets = {(source.parent / link.partition("#")[0]).resolve() for source, link in WITHIN if source != page}
    assert page in targets or page == ROOT / "README.md"


def test_every_recorded_picture_is_shown():
    shown = {(source.parent / link).resolve() for source, link in WITHIN}
    assert set((ROOT / "docs").rglob("*.png")) <= shown


def rows(beginning: str) -> list[str]:
    """What the README's table says in the rows that begin so."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    return [line.split(" | ", 1)[1] for line in lines if line.startswith(f"| {beginning}")]


def names(beginning: str) -> list[str]:
    return re.findall(r"`([^`]+)`", " ".join(rows(beginning)))


def test_the_table_names_every_agent_with_its_losses():
    (row,) = rows("agents |")
    said = re.findall(r"`(\w+)`(?: \((.*?)\))?", row)
    assert [name for name, _ in said] == list(KINDS)
    for name, losses in said:
        setting = KINDS[name].value_loss
        choices = get_args(KINDS[name].settings.__dataclass_fields__[setting].type) if setting else ()
        assert tuple(re.findall(r"`(\w+)`", losses)) == choices


def test_the_table_names_worlds_of_every_family_and_every_change():
    ids = names("worlds |")
    families = [family_of(env_id.replace("<Game>", "Pong")).name for env_id in ids]
    assert sorted(families) == sorted(family.name for family in FAMILIES)
    assert {env_id for family in FAMILIES for env_id in family.registered} <= set(ids)
    assert sorted(names("what changes in them |")) == sorted(CHANGES)


def test_the_table_names_every_intervention_and_probe_once():
    assert sorted(names("interventions:")) == sorted(NAMES)
    assert names("interventions together |") == list(COMBINATIONS)
    assert sorted(names("probes:")) == sorted(probe_costs())
    count = re.search(r"\*\*(\d+) interventions\*\*", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert int(count[1]) == len(NAMES)


def test_the_first_page_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
