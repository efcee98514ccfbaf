"""The notebook runs from top to bottom in a clone."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
def test_all_cells_of_the_notebook_run(tmp_path):
    cells = json.loads((ROOT / "examples/fd_jax.ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 7
    (tmp_path / "notebook.py").write_text("\n".join(code))
    for name in ("fd_jax", "configs", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "sample.py", tmp_path)
    done = subprocess.run(
        [sys.executable, "notebook.py"],
        cwd=tmp_path,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "runs/notebook/metrics.jsonl").exists()
    assert (tmp_path / "outputs/exported/diffusers/model_index.json").exists()
