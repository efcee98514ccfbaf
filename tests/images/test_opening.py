"""Images are opened with the listed decoders alone, and errors say what a file is."""

import concurrent.futures
import io
import os
import threading
import warnings

import numpy as np
import pytest
from PIL import Image

from fd_jax.data.ffhq.record import DataError, decode_image, decode_map
from fd_jax.data.photographs import PhotographError, load_photograph
from fd_jax.errors import OutputError
from fd_jax.images.opening import UnknownFormatError, is_listed, open_image, quiet
from fd_jax.images.png import read_settings

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n"
BINARY_EPS = b"\xc5\xd0\xd3\xc6" + (30).to_bytes(4, "little") + bytes(22) + EPS
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)


def encoded(name):
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, name)
    return stream.getvalue()


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """A Ghostscript that leaves a file behind when it is started."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("gs", "gswin64c", "gswin32c"):
        (folder / name).write_text(f'#!/bin/sh\necho "$@" >> {folder}/called\n')
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    yield folder / "called"
    assert not (folder / "called").exists()


@pytest.mark.usefixtures("ghostscript")
@pytest.mark.parametrize("name", ["portrait.jpg", "portrait.png", "portrait.eps", "portrait"])
@pytest.mark.parametrize("content", [EPS, BINARY_EPS], ids=["text", "binary"])
def test_no_file_starts_ghostscript(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)

    for source in (path, content, io.BytesIO(content)):
        with pytest.raises(PhotographError, match=r"is PostScript \(EPS\), expected JPEG, PNG"):
            load_photograph(source)
    with pytest.raises(DataError, match="PostScript"):
        decode_image(content, "x")
    with pytest.raises(DataError, match="item x: its segment map cannot be read"):
        decode_map(content, "x", 64, 64)
    with pytest.raises(OutputError, match="expected a PNG file"):
        read_settings(path)


@pytest.mark.usefixtures("ghostscript")
def test_an_opened_eps_starts_no_ghostscript_either():
    with Image.open(io.BytesIO(EPS)) as image:
        assert not is_listed(image)
        with pytest.raises(PhotographError, match=r"was opened as EPS, expected JPEG"):
            load_photograph(image)


@pytest.mark.parametrize("name", ["PPM", "TGA", "PCX", "ICO", "SGI", "DDS", "PDF"])
def test_formats_that_are_not_listed_are_refused(name):
    with pytest.raises(PhotographError, match="expected JPEG, PNG, WebP"):
        load_photograph(encoded(name))


@pytest.mark.parametrize("name", ["PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000"])
def test_listed_formats_are_read(name):
    photograph = load_photograph(encoded(name))

    assert photograph.shape == PIXELS.shape
    if name != "GIF" and name != "WEBP":
        np.testing.assert_array_equal(photograph, PIXELS)


def test_a_file_of_several_pictures_of_a_camera_is_a_jpeg():
    stream = io.BytesIO()
    image = Image.fromarray(PIXELS)
    image.save(stream, "MPO", save_all=True, append_images=[image])

    assert load_photograph(stream.getvalue()).shape == PIXELS.shape


def test_heic_names_its_plug_in():
    head = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(40)
    if "HEIF" not in Image.OPEN:
        with pytest.raises(UnknownFormatError, match="pip install pillow-heif"):
            open_image(io.BytesIO(head))


def test_decoders_that_are_not_listed_cannot_be_asked_for():
    with pytest.raises(ValueError, match="expected some of"):
        open_image(io.BytesIO(EPS), formats=("EPS",))


def test_threads_leave_the_filters_of_warnings_as_they_were(monkeypatch):
    """Whichever thread is first to enter and last to leave."""
    before = list(warnings.filters)
    inside, first_left = threading.Barrier(2), threading.Event()

    def first():
        with quiet():
            inside.wait()
        first_left.set()

    def second():
        with quiet():
            inside.wait()
            first_left.wait()
            warnings.warn("of metadata", stacklevel=1)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        done = [pool.submit(first), pool.submit(second)]
    assert [future.exception() for future in done] == [None, None]
    assert warnings.filters == before

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: load_photograph(encoded("PNG")), range(64)))
    assert warnings.filters == before
