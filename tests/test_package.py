"""The installed package: its requirements, commands and configs, outside a clone."""

import os
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TEST_TOOLS = {"pytest", "pytest-xdist", "beartype", "ruff", "pyright", "pre-commit"}


def name_of(requirement):
    return re.match(r"[\w.-]+", requirement)[0]


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_requirements_are_those_of_the_package():
    """requirements.txt sets up sampling, training, evaluation and tests: nothing more or less."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    listed = {line.split("#")[0].strip() for line in lines if re.match(r"\w", line)}

    extras = PROJECT["project"]["optional-dependencies"]
    needed = set(PROJECT["project"]["dependencies"])
    needed |= {*extras["train"], *extras["prepare"], *extras["evaluation"], *extras["test"]}
    assert listed == {entry for entry in needed if not entry.startswith("fd_jax")}


def test_running_needs_no_test_tools():
    assert not TEST_TOOLS & set(map(name_of, PROJECT["project"]["dependencies"]))


def test_every_package_is_listed():
    """Packages are named one by one in pyproject.toml."""
    there = {path.parent.relative_to(ROOT) for path in (ROOT / "fd_jax").rglob("__init__.py")}

    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    assert listed == {".".join(path.parts) for path in there} | {"fd_jax.configs"}


def test_ci_runs_the_command_of_the_readme():
    [command] = re.findall(
        r"^\.venv/bin/python -m pytest .*$", (ROOT / ".ci/run").read_text(), re.M
    )
    block = (ROOT / "README.md").read_text().split("## Test it")[1]

    assert command in block.split("```")[1].splitlines()


def test_importing_takes_no_jax():
    code = "import sys, fd_jax; print(fd_jax.__version__, 'jax' in sys.modules)"

    assert run(sys.executable, "-c", code, cwd=ROOT).split()[1] == "False"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A fresh environment outside the clone with the wheel; other packages are this one's."""
    folder = tmp_path_factory.mktemp("installed")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")
    source = folder / "source"  # setuptools writes build files beside what it builds
    names = ["fd_jax", "configs", "pyproject.toml", "README.md", "LICENSE"]
    source.mkdir()
    run("cp", "-r", *(str(ROOT / name) for name in names), str(source))
    run(*pip, "wheel", "--no-deps", "-w", str(folder), str(source))
    [wheel] = folder.glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", str(folder / "env"))
    python = folder / "env" / "bin" / "python"
    [site] = (folder / "env").glob("lib/python*/site-packages")
    run(*pip, "--python", str(python), "install", "--no-deps", str(wheel))
    others = [path for path in sys.path if path.endswith("site-packages")]
    (site / "others.pth").write_text("\n".join(others))
    return folder / "env" / "bin"


def outside(folder):
    """Options of a process that sees neither the clone nor the test's own settings."""
    hidden = ("PYTHONPATH", "XLA_FLAGS")
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    return {"cwd": folder, "env": env}


def test_the_installed_package_samples(installed, tmp_path):
    prompt = ["--prompt", "a man <|image|> in the snow", "--num-steps", "2", "--output", "made"]
    where = "import fd_jax; print(fd_jax.__file__); print(fd_jax.assets.PEOPLE / 'P005/P005.jpg')"
    where = where.replace("import fd_jax;", "import fd_jax, fd_jax.assets;")
    file, person = run(str(installed / "python"), "-c", where, **outside(tmp_path)).split()
    assert str(ROOT) not in file

    run(str(installed / "fd-sample"), *prompt, "--reference", person, **outside(tmp_path))

    assert [path.name for path in (tmp_path / "made").glob("*.png")] == ["0000.png"]


@pytest.mark.parametrize("name", ["tdm_ffhq", "sdm_ffhq", "sdm_small", "demo_sdm"])
def test_configs_are_found_by_name(installed, tmp_path, name):
    shown = run(str(installed / "fd-train"), "--config", name, "--help", **outside(tmp_path))

    assert "--data.batch-size" in shown


@pytest.mark.parametrize("command", ["fd-data", "fd-demo", "fd-evaluate", "fd-export", "fd-sample"])
def test_commands_have_help(installed, tmp_path, command):
    shown = run(str(installed / command), "--help", **outside(tmp_path))

    assert shown.startswith("usage:")
