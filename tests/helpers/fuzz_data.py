"""Readers of training data for `tests.helpers.fuzz`."""

import shutil

from fd_jax.data.ffhq import tfds_dataset
from fd_jax.data.ffhq.record import decode_image, decode_map, read_info
from fd_jax.data.ffhq.source import open_source
from fd_jax.data.latent_cache import read_block
from fd_jax.data.photographs import load_photograph
from tests.helpers.ffhq_items import encoded, item, write_folder
from tests.helpers.latent_blocks import make_block

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000")


def readers(folder):
    """Yields names, contents of files and functions that read them, and what errors must name."""
    from PIL import Image

    files = encoded(item(2))
    pixels = Image.fromarray(item()["image"])
    yield "record JSON", files[".json"], lambda content: read_info(content, "x"), "item x"
    yield "npy", files[".npy"], lambda content: decode_map(content, "x", 32, 48), "item x"
    yield "training image", files[".jpg"], lambda content: decode_image(content, "x"), "item x"
    for name in FORMATS:
        path = folder / f"a.{name.lower()}"
        pixels.save(path, name)

        def read(content, path=path):
            path.write_bytes(content)
            load_photograph(path)

        yield name, path.read_bytes(), read, path.name
    root = write_folder(folder / "folder", [item(2, seed=i) for i in range(3)])
    tfds_dataset.build(root, folder / "dataset")
    built = folder / "dataset" / "ffhq_fastcomposer" / "1.0.0"
    for path in sorted(built.iterdir()):
        whole = path.read_bytes()

        def read(content, path=path):
            other = folder / "other"
            shutil.rmtree(other, ignore_errors=True)
            shutil.copytree(built, other)
            (other / path.name).write_bytes(content)
            source = open_source([other], "train")
            for i in range(len(source)):
                record = source[i]
                decode_map(
                    record.segment_map, "other", *decode_image(record.image, "other").shape[:2]
                )

        yield path.name, whole, read, "other"
    make_block(folder / "cache")
    for path in sorted((folder / "cache").iterdir()):
        whole = path.read_bytes()

        def read(content, path=path, whole=whole):
            try:
                path.write_bytes(content)
                read_block(folder / "cache", 0)
            finally:
                path.write_bytes(whole)

        yield path.name, whole, read, "00000_"
