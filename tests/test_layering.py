"""Imports inside fd_jax point one way, between folders and inside them, and do no work."""

import ast
import graphlib
import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

# A module may import what is in a row above its own. Modules and folders of one row do not know
# each other: `models` never imports `conditioning`, nor the other way round.
LAYERS = (
    {"assets", "errors", "types"},
    {"buckets"},
    {"cli", "config", "files", "numerics", "ops", "params", "plain_paths"},
    {"architecture", "compilation", "distributed", "images", "schedule", "sharding"},
    {"checkpoints", "data"},
    {"conditioning", "faces", "models"},
    {"losses", "networks", "sampling"},
    {"inference"},
    {"training", "web"},
    {"evaluation"},
    {"demo"},
)
# Modules and folders that read and write files; the rest gets what is in them.
TOUCH_FILES = (
    "assets",
    "buckets",
    "checkpoints",
    "data",
    "demo",
    "distributed",
    "evaluation",
    "faces",
    "files",
    "images",
    "inference",
    "plain_paths",
    "training.cli",
    "training.latent_cache",
    "training.loop",
    "training.metrics",
    "training.run_config",
    "training.run_lock",
    "web.page",
)
FILE_CALLS = {
    *("open", "read_bytes", "read_text", "write_bytes", "write_text", "mkdir", "makedirs"),
    *("unlink", "rmtree", "touch", "symlink_to", "glob", "rglob", "iterdir", "scandir"),
    *("is_file", "is_dir", "exists", "stat", "NamedTemporaryFile", "TemporaryDirectory"),
    *("read_json", "write_json", "atomic_file", "atomic_folder"),
}
ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "fd_jax"
PATHS = sorted(PACKAGE.rglob("*.py"))


def module_name(path):
    """Name below fd_jax: `ops.attention`, and `` for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PATHS}
every_module = pytest.mark.parametrize("name", [name for name in MODULES if name])


def parse(name):
    return ast.parse(MODULES[name].read_text())


def imports(tree):
    """Full names of all modules that are imported, at the top or inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import, expected a full name"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                is_module = inner.removeprefix("fd_jax.") in MODULES
                yield inner if is_module or node.module == "fd_jax" else node.module


def own_imports(name):
    """Modules of fd_jax that a module imports, and the packages that these are in."""
    tree = parse(name)
    if not name:  # imported when they are first used
        exports = [node for node in tree.body if isinstance(node, ast.Assign)]
        tables = [node.value for node in exports if node.targets[0].id == "_EXPORTS"]
        return {value.removeprefix("fd_jax.") for value in ast.literal_eval(tables[0]).values()}
    return {
        found.removeprefix("fd_jax.") for found in imports(tree) if found.startswith("fd_jax.")
    } & MODULES.keys()


def at_import(tree):
    """The tree without the bodies of its functions, which run later."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = []
    return tree


def row(name):
    for i, names in enumerate(LAYERS):
        if name.split(".")[0] in names:
            return i
    pytest.fail(f"fd_jax.{name} is in no row of LAYERS: add it to one")


@every_module
def test_imports_point_up(name):
    for target in own_imports(name):
        if target.split(".")[0] != name.split(".")[0]:
            assert row(target) < row(name), f"fd_jax.{name} imports fd_jax.{target}"


def test_every_module_is_in_one_row():
    there = {name.split(".")[0] for name in MODULES if name}

    for name in there:
        row(name)
    assert set().union(*LAYERS) - there == set()  # none that is gone
    assert sum(map(len, LAYERS)) == len(there)


def test_no_circle_anywhere():
    """Not inside a folder either, nor by imports inside functions."""
    graph = {name: own_imports(name) for name in MODULES}

    try:
        order = list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail("circle: " + " -> ".join(error.args[1]))
    assert set(order) == set(MODULES)


def test_circles_are_found(monkeypatch, tmp_path):
    """The check above would see one that a late import hides."""
    first, second = tmp_path / "first.py", tmp_path / "second.py"
    first.write_text("from fd_jax.second import f\n")
    second.write_text("def f():\n    from fd_jax import first\n    return first\n")
    monkeypatch.setitem(MODULES, "first", first)
    monkeypatch.setitem(MODULES, "second", second)

    graph = {name: own_imports(name) for name in MODULES}
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(graph).prepare()


@every_module
def test_the_demo_is_imported_by_nobody(name):
    if name.split(".")[0] != "demo":
        assert not [found for found in own_imports(name) if found.split(".")[0] == "demo"]


@every_module
def test_networks_read_no_files(name):
    """`models` and `conditioning` get their architecture; only `checkpoints` reads JSON."""
    if name.split(".")[0] in ("models", "conditioning"):
        assert not {"json", "pathlib", "os"} & set(imports(parse(name)))
        assert not {"files", "assets", "images"} & own_imports(name)


def file_calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            if name in FILE_CALLS:
                yield f"line {node.lineno}: {name}"


@every_module
def test_files_are_touched_at_the_rim(name):
    if not any(name == rim or name.startswith(f"{rim}.") for rim in TOUCH_FILES):
        assert list(file_calls(parse(name))) == []


@every_module
def test_other_frameworks_are_not_imported(name):
    packages = {found.split(".")[0] for found in imports(parse(name))}

    assert not packages & {"torch", "torchvision", "tensorflow", "diffusers"}


@every_module
def test_transformers_are_imported_late(name):
    """They take seconds, which a command that needs no tokenizer should not wait for."""
    packages = {found.split(".")[0] for found in imports(at_import(parse(name)))}

    assert "transformers" not in packages


# Imports modules; prints what is done besides: files written or read, processes, devices opened.
WATCH = """
import importlib, os, sys
package, *names = sys.argv[1:]
def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], str):
        path, mode, _ = arguments
        is_asset = path.startswith(package) and not path.endswith((".py", ".pyc"))
        if is_asset or (mode and set(mode) & set("wax+") and path != os.devnull):
            print(f"{name}: opens {path}")
    elif event in ("subprocess.Popen", "socket.connect", "os.mkdir", "os.remove"):
        print(f"{name}: {event}")
for name in ("transformers", "grain", "tensorflow_datasets", "orbax.checkpoint"):
    importlib.import_module(name)  # what those do is not ours
sys.addaudithook(watch)
for name in names:
    importlib.import_module(name)
from jax._src import xla_bridge
if xla_bridge.backends_are_initialized():
    print("devices are opened")
"""


def test_imports_do_no_work():
    """No file is read or written, no array is made, no process is started."""
    names = [f"fd_jax.{name}" for name in MODULES if name and not name.endswith("__main__")]
    if importlib.util.find_spec("gradio") is None:  # an extra
        names = [name for name in names if name not in ("fd_jax.web.page", "fd_jax.web.launch")]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WATCH, str(PACKAGE), *names],
        **{"env": environment, "cwd": ROOT, "capture_output": True, "text": True},
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
