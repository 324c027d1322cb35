"""plasticity_probes installed by itself works with torch and nothing else."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "plasticity_probes"

PROGRAM = """
import importlib.metadata, sys
from pathlib import Path

absent = "numpy scipy pandas gymnasium matplotlib stable_baselines3 tensorboard rich agents experiments".split()
sys.modules.update(dict.fromkeys(absent))  # what a machine with torch alone would say
import torch
from torch import nn
import plasticity_probes
from plasticity_probes import Prober, Readout, Subject

here = Path(sys.argv[1])
assert here in Path(plasticity_probes.__file__).parents, plasticity_probes.__file__
assert importlib.metadata.requires("plasticity-probes") == ["torch", 'stable-baselines3; extra == "sb3"']

torch.manual_seed(0)
def build():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))

network = build()
optimizer = torch.optim.Adam(network.parameters())
data = torch.randn(64, 4)

def losses(network, x):
    return network(x).square().sum(1)

def regression(network, x):
    return network(x)[:, 0], x[:, 0]

readout = Readout("", lambda y: y[:, 0], "first", losses, regression)
options = {"optimizer": optimizer, "behaviour": lambda y: y, "fresh": build}
subject = Subject(network, lambda n: {"observations": data[:n]}, (readout,), **options)
said = []
prober = Prober(subject, ("all", "sharpness"), 1, samples=32, heavy_samples=8, tell=said.append)
found = prober.measure(1)
losses(network, data).mean().backward()
optimizer.step()
assert prober.after_update().scalars["probes/churn/value"].tolist() > 0
values = torch.stack([value.float() for value in found.scalars.values()]).tolist()
assert len(values) > 50 and not said, said
try:
    import plasticity_probes.sb3
except ModuleNotFoundError as error:
    assert error.name.partition(".")[0] in absent
else:
    raise AssertionError("sb3 was there")
print("measured", len(values))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the package, built from a copy: setuptools writes beside what it builds."""
    folder = tmp_path_factory.mktemp("standalone")
    copy = folder / "source" / "plasticity_probes"
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    target = folder / "installed"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    command += ["--no-deps", "--no-build-isolation"]  # torch has brought a setuptools that is new enough
    done = subprocess.run([*command, "--target", str(target), str(copy)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(copy.glob("build")) and not list(copy.glob("*.egg-info"))
    return target


def test_it_needs_torch_alone(installed, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(installed)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("measured")


def test_every_module_is_installed_and_nothing_else(installed):
    modules = {path.relative_to(SOURCE) for path in SOURCE.rglob("*.py")}
    package = installed / "plasticity_probes"
    assert {path.relative_to(package) for path in package.rglob("*.py")} == modules
    folders = {path.name for path in installed.iterdir()}
    assert {name for name in folders if not name.endswith(".dist-info")} == {"plasticity_probes"}


def test_the_sources_were_left_clean():
    assert not list(SOURCE.glob("build")) and not list(SOURCE.glob("*.egg-info"))
