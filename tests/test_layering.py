"""Imports inside fd_jax point one way: a module may import only what is in a row above its own."""

import ast
import pathlib

import pytest

# Modules and folders of one row do not know each other: `models` never imports `conditioning`,
# nor the other way round.
LAYERS = (
    {"assets", "errors", "types"},
    {"cli", "config", "files", "ops", "params", "schedule"},
    {"architecture", "distributed", "images", "sharding"},
    {"checkpoints", "data"},
    {"conditioning", "models"},
    {"losses", "networks", "sampling"},
    {"inference", "training"},
    {"evaluation"},
    {"demo"},
)
PACKAGE = pathlib.Path(__file__).parents[1] / "fd_jax"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
every_module = pytest.mark.parametrize(
    "path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE))
)


def row(name):
    for i, names in enumerate(LAYERS):
        if name in names:
            return i
    pytest.fail(f"fd_jax.{name} is in no row of LAYERS: add it to one")


def imports(tree):
    """Full names of all that is imported, `from fd_jax import ops` being fd_jax.ops."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import, expected a full name"
            if node.module == "fd_jax":
                yield from (f"fd_jax.{alias.name}" for alias in node.names)
            else:
                yield node.module


def at_import(tree):
    """The tree without the bodies of its functions, which run later."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = []
    return tree


@every_module
def test_imports_point_up(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")

    for name in imports(ast.parse(path.read_text())):
        if name == "fd_jax" or name.startswith("fd_jax."):
            [target] = name.split(".")[1:2] or ["inference"]
            if target != own:
                assert row(target) < row(own), f"fd_jax.{own} imports fd_jax.{target}"


def test_every_module_is_in_one_row():
    there = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in MODULES}

    for name in there:
        row(name)
    assert set().union(*LAYERS) - there == set()  # none that is gone
    assert sum(map(len, LAYERS)) == len(there)


@every_module
def test_other_frameworks_are_not_imported(path):
    packages = {name.split(".")[0] for name in imports(ast.parse(path.read_text()))}

    assert not packages & {"torch", "torchvision", "tensorflow", "diffusers"}


@pytest.mark.parametrize("path", [PACKAGE / "__init__.py", *MODULES], ids=lambda path: path.stem)
def test_transformers_are_imported_late(path):
    """They take seconds, which whoever needs no tokenizer should not wait."""
    packages = {name.split(".")[0] for name in imports(at_import(ast.parse(path.read_text())))}

    assert "transformers" not in packages
