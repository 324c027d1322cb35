"""Who may know whom. Reads every import of the repository, those inside functions and type-checking blocks included."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STDLIB = set(sys.stdlib_module_names)

# What each room may import of ours; "commands" are the files at the root.
MAY_IMPORT = {
    "commands": {"experiments"},
    "benchmarks": {"agents", "benchmarks", "envs", "experiments", "plasticity_probes"},
    "experiments": {"agents", "envs", "experiments", "plasticity_probes"},
    "agents": {"agents", "plasticity_probes"},
    "envs": {"envs"},
    "plasticity_probes": {"plasticity_probes"},
}
OURS = set(MAY_IMPORT) - {"commands"}
WORLDS = {"ale_py", "cv2", "envpool", "gymnasium", "mujoco"}
SCREENS_AND_FILES = {"imageio", "matplotlib", "rich", "tensorboard", "wandb"}
MUST_NOT_IMPORT = {"agents": WORLDS | SCREENS_AND_FILES, "envs": {"torch"} | SCREENS_AND_FILES}

LIGHT_MODULES = [
    "agents.config",
    "agents.checks",
    "agents.kinds",
    "agents.schedule",
    "agents.interventions",
    "envs.config",
    "experiments.config",
    "experiments.cli",
    "experiments.presets",
    "experiments.results.written",
    "experiments.sweep.plan",
    "experiments.sweep.settings",
]
HEAVY = {"torch", "envpool", "mujoco", "stable_baselines3"}

GLOBAL_SEEDING = {
    "np.random.seed",
    "numpy.random.seed",
    "random.seed",
    "torch.manual_seed",
    "torch.random.manual_seed",
    "torch.seed",
    "torch.cuda.manual_seed",
    "torch.cuda.manual_seed_all",
}


def sources():
    """Every Python file outside tests, with its room."""
    files = [(path, "commands") for path in ROOT.glob("*.py")]
    files += [(path, room) for room in sorted(OURS) for path in (ROOT / room).rglob("*.py")]
    return [(path, room) for path, room in files if ".venv" not in path.parts]


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def top_level_imports(tree, room):
    """The first names of everything that `tree` imports; a relative import stays in its room."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.partition(".")[0] if node.level == 0 else room


def dotted_names(tree):
    """Every a.b.c that `tree` mentions, and every `from a import b` as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        parts = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if parts and isinstance(node, ast.Name):
            yield ".".join([node.id, *reversed(parts)])


def test_there_is_something_to_check():
    rooms = {room for _, room in sources()}
    assert rooms >= {"commands", "experiments", "agents", "envs", "plasticity_probes"}


def test_imports_go_down_only():
    for path, room in sources():
        imported = set(top_level_imports(tree_of(path), room))
        assert imported & OURS <= MAY_IMPORT[room], path
        assert not imported & MUST_NOT_IMPORT.get(room, set()), path
        assert "tests" not in imported, path
        allowed = "sb3" in str(path.relative_to(ROOT)) or room == "benchmarks"
        assert allowed or "stable_baselines3" not in imported, path


def test_probes_need_torch_alone():
    for path in (ROOT / "plasticity_probes").rglob("*.py"):
        if "sb3" not in path.parts:
            imported = set(top_level_imports(tree_of(path), "plasticity_probes"))
            assert imported <= STDLIB | {"torch", "plasticity_probes"}, path


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_settings_are_light(module):
    code = f"import sys, {module}; print(*sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("path", ROOT.glob("*.py"), ids=lambda path: path.name)
def test_commands_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60


def test_no_global_seeds():
    for path, _ in sources():
        assert not GLOBAL_SEEDING & set(dotted_names(tree_of(path))), path


def test_the_checks_see_what_they_should():
    code = "def f():\n from envs.make import x\n import numpy as np\n np.random.seed(1)\n g().manual_seed(2)"
    assert set(top_level_imports(ast.parse(code), "agents")) == {"envs", "numpy"}
    assert GLOBAL_SEEDING & set(dotted_names(ast.parse(code))) == {"np.random.seed"}
    assert GLOBAL_SEEDING & set(dotted_names(ast.parse("from torch import manual_seed"))) == {"torch.manual_seed"}


def test_every_package_is_listed_for_installation():
    """One wheel has agents/, under a name of its own, the other the probes (their own test builds it)."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = settings["tool"]["setuptools"]["packages"]
    found = [path.parent.relative_to(ROOT) for path in (ROOT / "agents").rglob("__init__.py")]
    assert sorted(listed) == sorted(".".join(("plasticity_suite", *path.parts)) for path in found)


def test_random_generators_are_made_by_the_registry_alone() -> None:
    """What agents and runs draw from is in one registry, and so in a run's state. Studies, their supervised problems
    and statistics are no part of a run."""
    makers = {"default_rng", "RandomState", "PCG64", "manual_seed"}
    found = set()
    for path in [*(ROOT / "agents").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]:
        names = {getattr(node, "attr", getattr(node, "id", "")) for node in ast.walk(ast.parse(path.read_text()))}
        if names & makers and not {"studies", "supervised", "results"} & set(path.relative_to(ROOT).parts):
            found.add(path.relative_to(ROOT).as_posix())
    assert found == {"agents/randomness.py"}
