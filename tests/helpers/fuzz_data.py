"""Mutates files of training data and reads them, in a process that watches what is executed.

python -m tests.helpers.fuzz_data FOLDER ROUNDS
"""

import json
import pathlib
import random
import shutil
import sys
import time
import warnings

from fd_jax.data.ffhq import tfds_dataset
from fd_jax.data.ffhq.record import decode_image, decode_map, read_info
from fd_jax.data.ffhq.source import open_source
from fd_jax.data.latent_cache import read_block
from fd_jax.data.photographs import load_photograph
from fd_jax.errors import InputError
from tests.helpers.ffhq_items import encoded, item, write_folder
from tests.helpers.latent_blocks import make_block

EXECUTES = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork")
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000")
WORDS = (
    b"this.Zen",
    b"\0",
    b"-1",
    b"99999999999999999999",
    b"[" * 2000,
    b"{}",
    b"null",
    b'"\\ud800"',
)


def mutate(rng, content):
    """Flips, cuts, repeats, inserts."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        place = rng.randrange(max(len(content), 1))
        kind = rng.randrange(5)
        if kind == 0 and content:
            content[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del content[place:]
        elif kind == 2:
            content[place:place] = rng.choice(WORDS)
        elif kind == 3:
            content[place:place] = content[: rng.randrange(64)]
        elif content:
            content[place : place + rng.randrange(9)] = rng.randbytes(rng.randrange(9))
    return bytes(content)


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


def main(folder, rounds):
    """Prints, for each reader, how many files were read, refused, and which ones went wrong."""
    folder = pathlib.Path(folder)
    rng = random.Random(0)
    warnings.simplefilter("ignore")
    counts = {}
    for name, content, read, named in readers(folder):
        read(content)  # imports what it needs
        count = counts[name] = {"read": 0, "refused": 0, "wrong": [], "slowest": 0.0}
        for _ in range(rounds):
            # What lies beyond is padding.
            mutated = mutate(rng, content[:8192]) + content[8192:]
            WATCH.append(name)
            begin = time.perf_counter()
            try:
                read(mutated)
                count["read"] += 1
            except InputError as error:
                count["refused"] += 1
                if named not in str(error):
                    count["wrong"].append(f"not named: {error!s:.200}")
            except Exception as error:
                count["wrong"].append(f"{type(error).__name__}: {error!s:.200}")
            finally:
                WATCH.pop()
            count["slowest"] = max(count["slowest"], round(time.perf_counter() - begin, 2))
    print(json.dumps({"counts": counts, "executed": EXECUTED}))


WATCH, EXECUTED = [], []


def _audit(event, arguments):
    if WATCH and (
        event in EXECUTES or (event == "import" and arguments[0] in ("this", "antigravity"))
    ):
        EXECUTED.append(f"{WATCH[-1]}: {event} {arguments!r:.200}")


if __name__ == "__main__":
    sys.addaudithook(_audit)
    main(sys.argv[1], int(sys.argv[2]))
