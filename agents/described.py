"""What the source of a dataclass says of its fields: the string under each (its --help), and, for classes whose import
would bring torch, the fields themselves. Standard library alone."""

import ast
import builtins
import functools
import importlib
import inspect
import sys
import typing
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[__name__.count(".")]
"""Where the top-level package lies that this one is part of."""


class Field(NamedTuple):
    """One field of a dataclass."""

    name: str
    hint: Any
    """Its type, as `typing.get_type_hints` would give it."""
    default: Any
    text: str
    """The string under it, on one line."""


def texts_of(kind: type) -> dict[str, str]:
    """By field of the dataclass `kind`, inherited ones included, the string under it, on one line."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        source = inspect.getsourcefile(base) if "__annotations__" in vars(base) else None
        body = _classes(Path(source)).get(base.__name__) if source else None
        found |= _texts(body) if body else {}
    return found


def fields_in_source(module: str, name: str) -> list[Field]:
    """The fields of the dataclass whose `name` attribute is `name`, in `module` of this project, without importing it.

    LookupError: the source says something that cannot be understood without running it.
    """
    source = _Source(module)
    return list(source.fields(source.classes[class_in_source(module, name)]).values())


def class_in_source(module: str, name: str) -> str:
    """The class whose `name` attribute is `name`, in `module` of this project, without importing it. LookupError: there
    is none."""
    for found in _Source(module).classes.values():
        if any(isinstance(part, ast.Assign) and _says_name(part, name) for part in found.body):
            return found.name
    raise LookupError(f"{module}: no class is named {name!r}")


def _says_name(assigned: ast.Assign, name: str) -> bool:
    target, value = assigned.targets[0], assigned.value
    return (
        isinstance(target, ast.Name) and target.id == "name" and isinstance(value, ast.Constant) and value.value == name
    )


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _classes(path: Path) -> dict[str, ast.ClassDef]:
    return {part.name: part for part in _tree(path).body if isinstance(part, ast.ClassDef)}


def _texts(found: ast.ClassDef) -> dict[str, str]:
    """Each annotated name of a class with the string right under it, or nothing."""
    texts = {}
    for part, following in zip(found.body, [*found.body[1:], None], strict=True):
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            below = following.value if isinstance(following, ast.Expr) else None
            said = below.value if isinstance(below, ast.Constant) and isinstance(below.value, str) else ""
            texts[part.target.id] = " ".join(said.split())
    return texts


def _light(module: str) -> bool:
    """Whether importing `module` brings the standard library and files of ours that bring no more."""
    if module.partition(".")[0] in sys.stdlib_module_names:
        return True
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    if not path.is_file():
        return False
    parts = [part for part in _tree(path).body if isinstance(part, ast.Import | ast.ImportFrom)]
    wanted = [[alias.name for alias in part.names] if isinstance(part, ast.Import) else [part.module] for part in parts]
    return all(_light(name) for names in wanted for name in names)


class _Source(dict):
    """A module's names as they are needed: a namespace for `eval` that looks them up in the source."""

    def __init__(self, module: str) -> None:
        super().__init__(vars(builtins))
        path = ROOT.joinpath(*module.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        self.module, self.classes = module, _classes(path)
        self.assigned, self.imported = {}, {}
        for part in _tree(path).body:
            if isinstance(part, ast.Assign) and isinstance(part.targets[0], ast.Name):
                self.assigned[part.targets[0].id] = part.value
            elif isinstance(part, ast.ImportFrom) and part.module and not part.level:
                self.imported |= {(alias.asname or alias.name): (part.module, alias.name) for alias in part.names}

    def __missing__(self, name: str) -> Any:
        if name in self.assigned:
            return self.value(self.assigned[name])
        if name not in self.imported:
            raise LookupError(f"{self.module}: {name} is not known without running it")
        module, original = self.imported[name]
        if _light(module):
            return getattr(importlib.import_module(module), original)
        return _Source(module)[original]

    def value(self, expression: ast.expr) -> Any:
        """What an expression of this module's top level means."""
        try:
            return eval(compile(ast.Expression(expression), self.module, "eval"), self)
        except LookupError:
            raise
        except Exception as error:
            raise LookupError(f"{self.module}: {ast.unparse(expression)} ({error})") from error

    def fields(self, found: ast.ClassDef) -> dict[str, Field]:
        """By name, those of the bases in this project's files first."""
        fields: dict[str, Field] = {}
        for base in reversed(found.bases):
            fields |= self._inherited(ast.unparse(base))
        texts = _texts(found)
        for part in found.body:
            if not isinstance(part, ast.AnnAssign) or "ClassVar" in ast.unparse(part.annotation):
                continue
            name = ast.unparse(part.target)
            if ast.unparse(part.annotation) == "KW_ONLY":
                continue
            if part.value is None:
                raise LookupError(f"{self.module}: {name} has no default")
            hint = typing.get_type_hints(type("", (), {"__annotations__": {name: self.value(part.annotation)}}))[name]
            fields[name] = Field(name, hint, self.value(part.value), texts[name])
        return fields

    def _inherited(self, base: str) -> dict[str, Field]:
        if base in self.classes:
            return self.fields(self.classes[base])
        if base not in self.imported:
            raise LookupError(f"{self.module}: the base {base} is not known without running it")
        module, original = self.imported[base]
        if not ROOT.joinpath(*module.split(".")).with_suffix(".py").is_file():
            return {}  # somebody else's base class, without fields of ours
        other = _Source(module)
        return other.fields(other.classes[original])
