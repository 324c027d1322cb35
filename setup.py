"""The wheel for other people's projects: agents/ as plasticity_suite.agents, so that it meets no `agents` of theirs.

    pip install ./plasticity_probes .

Everything else (training, worlds, studies) is used from the checkout, where nothing needs to be built.
"""

import re
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


def under_one_package(source: str) -> str:
    """`source` with its imports of `agents`, and the names of modules in its strings, as those of the wheel."""
    return re.sub(r'(^ *from |")agents(?= import |\.\w)', r"\1plasticity_suite.agents", source, flags=re.M)


class BuildUnderOnePackage(build_py):
    """Rewrites the copies that go into the wheel."""

    def build_module(self, module: str, module_file: str, package: str | list[str]) -> tuple[str, bool]:
        copied, _ = result = super().build_module(module, module_file, package)
        path = Path(copied)
        path.write_text(under_one_package(path.read_text(encoding="utf-8")), encoding="utf-8")
        return result


setup(cmdclass={"build_py": BuildUnderOnePackage})
