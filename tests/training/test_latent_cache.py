"""Encodings of the data: the same training without the encoders, and what is refused."""

import jax
import numpy as np
import pytest

from fd_jax import params, sharding
from fd_jax.assets import TOKENIZER
from fd_jax.data.captions import load_tokenizer
from fd_jax.data.ffhq.record import DataError, Segment
from fd_jax.data.ffhq.source import open_source
from fd_jax.data.latent_cache import INFO_FILE, read_block, token_sequences
from fd_jax.data.loader import Loader
from fd_jax.errors import InputError
from fd_jax.networks import make_networks
from fd_jax.training import latent_cache, trainer
from fd_jax.training.tasks import TASKS
from fd_jax.training.trainer import train
from tests.helpers.networks import TINY
from tests.helpers.training import PHOTOS, make_config, read_losses
from tests.helpers.untrained import random_params

SDM = {
    "task": "sdm",
    "data__max_subjects": 2,
    "optimizer__train": (("unet/", 1.0), ("subject_fusion/", 1.0)),
}


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    make_mesh = sharding.make_mesh
    one = jax.devices()[:1]
    monkeypatch.setattr(sharding, "make_mesh", lambda _=None, *, fsdp=1: make_mesh(one, fsdp=fsdp))
    monkeypatch.setattr(trainer, "count_step_flops", lambda *_: 1)  # counting takes time
    monkeypatch.setattr(latent_cache, "_BLOCK", 2)  # three photographs are two blocks


def build(folder, *, root=(PHOTOS,), dtype="float32", resolution=16, seed=0):
    """Encodes the photographs."""
    config = make_config(data__latent_cache=folder, data__root=root, data__resolution=resolution)
    networks = make_networks(TINY, dtype=dtype)
    parts = {
        part: random_params(getattr(networks, part).abstract, seed, part)
        for part in ("unet", "vae", "text_encoder")
    }
    frozen = params.cast(jax.tree.map(jax.numpy.asarray, params.flat(parts)), networks.dtype)
    source = open_source(root, "train")
    return latent_cache.build(config.data, source, load_tokenizer(TOKENIZER), networks, frozen)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{}, pytest.param(SDM, marks=pytest.mark.slow)], ids=["tdm", "sdm"]
)
def test_losses_are_those_of_images(tmp_path, changes):
    """Also where a run that began with images goes on with encodings."""
    config = make_config(**changes)
    assert train(config, tmp_path / "images") is None
    config = make_config(**changes, loop__num_steps=2)
    assert train(config, tmp_path / "encoded") is None
    config = make_config(**changes, data__latent_cache=tmp_path / "encodings")
    assert train(config, tmp_path / "encoded") is None
    expected = read_losses(tmp_path / "images")
    assert len(expected) == 4
    assert read_losses(tmp_path / "encoded") == pytest.approx(expected, rel=1e-5)


def test_only_missing_blocks_are_made(tmp_path, monkeypatch, capsys):
    build(tmp_path)
    assert "encoding the data" in capsys.readouterr().err
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(before) == 2 * 4 + 1
    (tmp_path / "00001_checksums.json").unlink()  # the last file of a block that was being written
    build(tmp_path)
    changed = {p.name for p in tmp_path.iterdir() if p.stat().st_mtime_ns != before[p.name]}
    assert changed == {name for name in before if name.startswith("00001")}
    monkeypatch.setattr(latent_cache, "_Encoder", None)  # which nobody may call now
    build(tmp_path)


def test_processes_share_the_work_and_the_folder(tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr(latent_cache.multihost_utils, "sync_global_devices", waited.append)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with pytest.raises(InputError, match="lacks 1 of 2 blocks"):
        build(tmp_path)
    assert sorted(path.name[:5] for path in tmp_path.glob("*.npy")) == ["00001"] * 3
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    build(tmp_path)
    assert len(waited) == 2


def test_encodings_of_something_else_are_refused(tmp_path):
    build(tmp_path)
    for changes, named in (
        ({"seed": 1}, "encoders: "),
        ({"dtype": "bfloat16"}, "dtype: 'float32' there, 'bfloat16' here"),
        ({"resolution": 32}, "resolution: 16 there, 32 here"),
        ({"root": (PHOTOS, PHOTOS)}, "items: 3 there, 6 here"),
    ):
        with pytest.raises(InputError, match="a latent cache of something else") as caught:
            build(tmp_path, **changes)
        assert named in str(caught.value)


@pytest.mark.parametrize(
    ("trained", "needs_images"),
    [("text_encoder/embedding", False), ("vae/encoder", False), ("unet/conv_in", True)],
)
def test_what_needs_images_is_refused(tmp_path, trained, needs_images):
    folder = tmp_path / "cache"
    with pytest.raises(InputError, match=r"data\.latent_cache is set, expected none"):
        latent_cache.check(folder, [trained], needs_images=needs_images)
    assert not folder.exists()


def test_which_tasks_need_images():
    found = {name: task.needs_images for name, task in TASKS.items()}
    assert found == {"tdm": False, "sdm": False, "vae": True}


def test_damaged_files_are_named(tmp_path):
    build(tmp_path)
    path = tmp_path / "00000_texts.npy"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"delete .* to have the block encoded again"):
        read_block(tmp_path, 0)
    np.save(path, np.array([{}]), allow_pickle=True)
    with pytest.raises(DataError, match=r"00000_texts.npy of the latent cache is damaged"):
        read_block(tmp_path, 0)
    (tmp_path / INFO_FILE).write_text("{")
    with pytest.raises(InputError, match=INFO_FILE):
        build(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_loaders_hand_over_what_is_stored(tmp_path, workers):
    made = build(tmp_path, dtype="bfloat16")
    config = make_config(data__num_workers=workers).data
    loader = Loader(config, None, 1, latent_cache=made)
    example = next(loader)
    loader.close()
    assert example.image is None
    assert example.posterior.dtype == example.text.dtype == np.uint16
    assert example.posterior.shape == (4, 8, 8, 8)
    for row, index in zip(example.posterior, example.index, strict=True):
        both = (made.posterior(int(index), flip=flip) for flip in (False, True))
        assert any(np.array_equal(row, one) for one in both)


def test_another_caption_is_an_error(tmp_path):
    made = build(tmp_path)
    record = open_source([PHOTOS], "train")[0]
    with pytest.raises(DataError, match=record.id):
        made.text(record, np.zeros(77, np.int32))


def test_a_mark_inside_of_a_word_is_another_sequence():
    record = open_source([PHOTOS], "train")[0]
    tokenizer = load_tokenizer(TOKENIZER)
    caption = "a fireman and a woman"

    def sequences(*ends):
        segments = tuple(Segment(1, (0, 0, 1, 1), 0, end, "person") for end in ends)
        return token_sequences(record._replace(caption=caption, segments=segments), tokenizer)

    assert len(sequences()) == 1
    assert len(sequences(9, 21)) == 1
    assert len(sequences(6, 21)) == 2  # a fire|man
    assert len(sequences(6, 18, 21)) == 4  # a wo|man too, or both
    assert len({tokens.tobytes() for tokens in sequences(6, 18)}) == 4
