"""Metadata of a TFDS dataset are checked before TFDS imports the classes that they name."""

import json
import shutil
import subprocess
import sys

import pytest

from fd_jax.data.ffhq import tfds_dataset
from fd_jax.data.ffhq.record import DataError
from fd_jax.data.ffhq.source import has_split, open_source
from fd_jax.data.ffhq.tfds_metadata import FEATURES, check_metadata

EVIL = "outputs.photos.evil.Feature"
# A class of Python's own, whose import has an effect that can be seen.
HARMLESS = "this.Zen"


@pytest.fixture(scope="module")
def built(folder, tmp_path_factory):
    target = tmp_path_factory.mktemp("built")
    tfds_dataset.build(folder, target)
    return target / "ffhq_fastcomposer" / "1.0.0"


@pytest.fixture
def dataset(built, tmp_path):
    return shutil.copytree(built, tmp_path / "outputs" / "photos")


def change(path, function):
    content = json.loads(path.read_text())
    function(content)
    path.write_text(json.dumps(content))


def test_what_build_writes_is_accepted(built):
    assert json.loads((built / "features.json").read_text()) == FEATURES
    assert list(check_metadata(built)) == ["train", "test", "all"]


@pytest.mark.parametrize(
    "where",
    [
        (),
        ("featuresDict", "features", "caption"),
        ("featuresDict", "features", "segments"),
        ("featuresDict", "features", "segments", "sequence", "feature"),
    ],
    ids=lambda where: ".".join(where[1:]),
)
@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name"])
def test_a_dataset_executes_nothing(dataset, tmp_path, where, key):
    """In a process of its own, as `train.py` would open it below the working directory."""
    (dataset / "evil.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\nclass Feature: 0")

    def set_class(content):
        for name in where:
            content = content[name]
        content[key] = EVIL

    change(dataset / "features.json", set_class)
    code = (
        "import sys; sys.path.insert(0, '')\nfrom pathlib import Path\n"
        "from fd_jax.data.ffhq.record import DataError\n"
        "from fd_jax.data.ffhq.source import open_source\n"
        "try:\n    open_source([Path('outputs/photos')], 'train')[0]\n"
        "except DataError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tfds_dataset.__file__).split("/fd_jax/")[0], "PATH": "/bin"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert "features.json" in done.stdout
    assert "expected" in done.stdout
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("call", [open_source, lambda roots, split: has_split(roots[0], split)])
def test_no_module_is_imported_whoever_asks(dataset, call):
    change(dataset / "features.json", lambda content: content.update(pythonClassName=HARMLESS))
    with pytest.raises(DataError, match=r"features.json: .*nothing of it is imported"):
        call([dataset], "train")
    assert "this" not in sys.modules


@pytest.mark.parametrize(
    "text",
    [
        '{"pythonClassName": "this.Zen", "pythonClassName": ' + json.dumps(FEATURES)[20:],
        json.dumps(FEATURES).replace('"text": {}', '"text": {"pythonClassName": "this.Zen"}', 1),
        json.dumps(FEATURES)[:-1] + ', "customObject": {"pythonClassName": "this.Zen"}}',
        json.dumps([FEATURES]),
        "[" * 100_000,
        "null",
        "\ud83d",
    ],
)
def test_features_that_differ_in_any_way_are_refused(dataset, text):
    (dataset / "features.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(DataError, match=r"outputs/photos is damaged, .*: features.json: "):
        open_source([dataset], "train")
    assert "this" not in sys.modules


def set_split(**changes):
    return lambda content: content["splits"][0].update(changes)


@pytest.mark.parametrize(
    ("name", "function", "message"),
    [
        ("dataset_info.json", lambda c: c.update(moduleName="this"), "moduleName is 'this'"),
        ("dataset_info.json", lambda c: c.update(module_name="this"), "other keys .* module_name"),
        ("dataset_info.json", lambda c: c.update(fileFormat="parquet"), "fileFormat is 'parquet'"),
        ("dataset_info.json", lambda c: c.update(version="2.0.0"), "version is '2.0.0'"),
        ("dataset_info.json", set_split(filepathTemplate="/etc/passwd"), "a split is .*passwd"),
        ("dataset_info.json", set_split(shardLengths=["0"]), "a split is"),
        ("dataset_info.json", set_split(shardLengths=["9" * 40]), "a split is"),
        ("dataset_info.json", set_split(shardLengths=["6"]), "names {'train': 7"),
        ("dataset_info.json", set_split(name="../train"), "a split is"),
        ("metadata.json", lambda c: c["image_ids"].update(more=[]), "image_ids is"),
        ("metadata.json", lambda c: c["image_ids"].update(train=[1]), "else than lists of strings"),
        ("metadata.json", lambda c: c["image_ids"].update(all=["x"]), "labels lacks 'x'"),
        ("metadata.json", lambda c: c.update(labels=[]), "labels holds something else"),
        ("metadata.json", lambda c: c.update(more=1), "expected the keys"),
    ],
)
def test_other_metadata_are_refused(dataset, name, function, message):
    change(dataset / name, function)
    with pytest.raises(DataError, match=f"{name}: .*{message}"):
        open_source([dataset], "train")


def test_another_dataset_is_named(dataset):
    change(dataset / "dataset_info.json", lambda content: content.update(name="mnist"))
    with pytest.raises(DataError, match="is the dataset 'mnist', expected ffhq_fastcomposer"):
        open_source([dataset], "train")


def test_a_killed_build_is_no_dataset(built, tmp_path):
    shutil.copytree(built, tmp_path / "ffhq_fastcomposer" / "1.0.0.incompleteABC123")
    with pytest.raises(DataError, match="holds no dataset"):
        open_source([tmp_path], "train")
    shutil.copytree(built, tmp_path / "ffhq_fastcomposer" / "1.0.0")
    assert len(open_source([tmp_path], "train")) == 7
