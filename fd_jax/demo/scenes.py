"""Composes people cut out of portraits and painted scenes: training data for small models.

    python -m fd_jax.demo.scenes PEOPLE SCENES

PEOPLE is one folder of portraits with masks, or several, in the layout of FFHQ-FastComposer.
SCENES is the folder to write, in the same layout: one or two people in front of one of the scenes
of `fd_jax.demo.painters`, with a caption that names people and scene, and a mask of each person.
The people of PEOPLE's test list are only in images of SCENES' test list.

A segment of PEOPLE may have the optional key `face`, the box x1, y1, x2, y2 of the face. The box
then sets the person's size and place, so that faces are as large as the image allows.
"""

import argparse
import json
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageFilter
from tqdm import tqdm

from fd_jax.data.ffhq.folder import ID_FILES, item_path
from fd_jax.data.ffhq.source import has_split
from fd_jax.demo.painters import SCENES, Scene, paint
from fd_jax.demo.portraits import MIN_SHARE, Cutout, People
from fd_jax.errors import InputError

Rng = np.random.Generator

_TEST_SHARE = 0.1  # test images per training image
_PLAIN = 0.5  # probability of the plainest phrase of a scene
_THREADS = 2
# Shares of the picture's height, by the number of people.
_FACE_HEIGHTS = {1: (0.52, 0.62), 2: (0.38, 0.45)}
_FACE_CENTRES = {1: 0.47, 2: 0.62}
_FORMS = ("{who} {where}", "a photo of {who} {where}", "{who} standing {where}", "{where}, {who}")


class Scenery(NamedTuple):
    """A composed image with its annotations."""

    pixels: UInt8[np.ndarray, "side side 3"]
    segment_map: UInt8[np.ndarray, "side side"]
    caption: str
    segments: list[dict]  # entries of the item's JSON file


def compose(scene: Scene, cutouts: list[Cutout], rng: Rng, side: int) -> Scenery | None:
    """Paints a scene and puts one or two people in front of it, from left to right.

    Returns:
        The image, or None if one person hides another.
    """
    pixels = paint(scene, rng, side).astype(np.float32)
    light = pixels.mean(axis=(0, 1))
    segment_map = np.zeros((side, side), np.uint8)
    order = rng.permutation(len(cutouts))  # the last is in front
    places = (0.5,) if len(cutouts) == 1 else (0.27, 0.73)
    for i in order:
        height, (x, y), (anchor_x, anchor_y) = _place(cutouts[i], places[i], len(cutouts), rng)
        person, alpha = _scaled(cutouts[i], side * height, rng, light)
        rows, columns = alpha.shape
        left = round(side * x - columns * anchor_x)
        # The lower edge of the picture cuts everybody.
        top = max(round(side * y - rows * anchor_y), side - rows)
        seen = (
            slice(max(-top, 0), min(side - top, rows)),
            slice(max(-left, 0), min(side - left, columns)),
        )
        where = (
            slice(max(top, 0), min(top + rows, side)),
            slice(max(left, 0), min(left + columns, side)),
        )
        alpha, person = alpha[seen][..., None], person[seen]
        pixels[where] = alpha * person + (1 - alpha) * pixels[where]
        segment_map[where][alpha[..., 0] > 0.5] = i + 1
    if any(np.mean(segment_map == i + 1) < MIN_SHARE for i in range(len(cutouts))):
        return None
    caption, spans = _caption(scene, [cutout.noun for cutout in cutouts], rng)
    segments = [
        {
            "id": i + 1,
            "word": cutouts[i].noun,
            "start": spans[i][0],
            "end": spans[i][1],
            "bbox": _box(segment_map == i + 1),
            "coco_label": "person",
            "score": 1.0,
        }
        for i in range(len(cutouts))
    ]
    return Scenery(pixels.clip(0, 255).astype(np.uint8), segment_map, caption, segments)


def _place(
    cutout: Cutout, x: float, count: int, rng: Rng
) -> tuple[float, tuple[float, float], tuple[float, float]]:
    """Draws size and place of a person, by the box of the face if there is one.

    Args:
        cutout: The person.
        x: Place of the person as a share of the image's width.
        count: Number of people in the image.
        rng: Source of the draws.

    Returns:
        Height of the cut-out as a share of the image's, a point (x, y) as shares of the image, and
        the point of the cut-out, as shares of its size, that goes there.
    """
    if cutout.face is None:
        height = rng.uniform(0.8, 0.95) if count == 1 else rng.uniform(0.64, 0.74)
        x += rng.uniform(-0.08, 0.08) * (1 if count == 1 else 0.4)
        return height, (x, 1.0), (0.5, 1.0)
    rows, columns = cutout.is_person.shape
    x1, y1, x2, y2 = cutout.face
    face = rng.uniform(*_FACE_HEIGHTS[count])
    x += rng.uniform(-0.05, 0.05) * (1 if count == 1 else 0.6)
    y = _FACE_CENTRES[count] + rng.uniform(-0.02, 0.02)
    anchor = (x1 + x2) / 2 / columns, (y1 + y2) / 2 / rows
    return face * rows / (y2 - y1), (x, y), anchor


def _scaled(
    cutout: Cutout, height: float, rng: Rng, light: Float[np.ndarray, "3"]
) -> tuple[Float[np.ndarray, "h w 3"], Float[np.ndarray, "h w"]]:
    """Scales a person to this height and lights it by the scene; returns pixels and alpha."""
    rows, columns = cutout.is_person.shape
    size = max(round(columns * height / rows), 1), round(height)
    image = Image.fromarray(cutout.pixels).resize(size, Image.Resampling.BOX)
    mask = Image.fromarray(cutout.is_person.astype(np.uint8) * 255)
    mask = mask.resize(size, Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(0.5))
    pixels = np.asarray(image, np.float32)
    # A tenth of the scene's colour, and light from one side.
    tint = 1 + 0.1 * (light / light.mean() - 1) + 0.12 * min(light.mean() / 128 - 1, 0)
    across = np.linspace(-1, 1, size[0], dtype=np.float32)[None, :, None]
    pixels = pixels * tint * (rng.uniform(0.94, 1.06) + rng.uniform(-0.08, 0.08) * across)
    return pixels, np.asarray(mask, np.float32) / 255


def _caption(scene: Scene, nouns: list[str], rng: Rng) -> tuple[str, list[tuple[int, int]]]:
    """Draws a caption; returns it with the span of characters that names each person."""
    phrases = scene.phrases
    where = phrases[0] if rng.random() < _PLAIN else phrases[rng.integers(len(phrases))]
    names = [f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}" for noun in nouns]
    who = " and ".join(names)
    caption = _FORMS[rng.choice(len(_FORMS), p=(0.55, 0.15, 0.15, 0.15))].format(
        who=who, where=where
    )
    start, spans = caption.index(who), []
    for name in names:
        spans.append((start, start + len(name)))
        start += len(name) + len(" and ")
    return caption, spans


def _box(is_person: Bool[np.ndarray, "h w"]) -> list[int]:
    """Returns the bounding box x1, y1, x2, y2 of a mask."""
    rows, columns = (np.flatnonzero(is_person.any(axis=axis)) for axis in (1, 0))
    return [int(x) for x in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)]


def _make(
    people: People, rng: Rng, number: int, side: int, pair_probability: float
) -> tuple[Scene, Scenery]:
    """Composes image `number`: scenes take turns, people are drawn."""
    scene = SCENES[number % len(SCENES)]
    while True:
        count = 2 if rng.random() < pair_probability else 1
        chosen = rng.choice(len(people.people), count, replace=False)
        cutouts = [people.cut(people.people[i]) for i in chosen]
        made = compose(scene, cutouts, rng, side)
        if made is not None:
            return scene, made


def build(
    roots: list[Path],
    out: Path,
    *,
    num_images: int = 12_000,
    pair_probability: float = 0.35,
    side: int = 128,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Writes a training set, whole or not at all. Equal seeds write equal files.

    Args:
        roots: Folders of portraits with masks.
        out: Folder to write.
        num_images: Number of images of people who are not on test lists; a tenth as many show
            people of test lists.
        pair_probability: Probability of two people in an image.
        side: Height and width of the images in pixels.
        seed: Seed of all draws.
        overwrite: Whether to replace a folder that an earlier build wrote.

    Raises:
        InputError: The people cannot be used, or the folder is not empty.
    """
    for name, value, low in (("num_images", num_images, 1), ("side", side, 16), ("seed", seed, 0)):
        if value < low:
            raise InputError(f"{name} is {value}, expected at least {low}")
    if not 0 <= pair_probability <= 1:
        raise InputError(f"pair_probability is {pair_probability}, expected 0 to 1")
    out = out.absolute()
    held = {path.name for path in out.iterdir()} if out.exists() else set()
    if held and not overwrite:
        raise InputError(f"{out} is not empty, expected a new folder, or --overwrite")
    if held and ID_FILES["all"] not in held:
        raise InputError(f"{out} holds no {ID_FILES['all']}: no build wrote it, it stays as it is")
    splits = {"train": People(roots, "train")}
    # A folder that is named twice counts twice in training only.
    with_test = [root for root in dict.fromkeys(roots) if has_split(root, "test")]
    if with_test:
        splits["test"] = People(with_test, "test")
    counts = {"train": num_images, "test": max(round(num_images * _TEST_SHARE), 1)}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        new, first, ids = Path(temporary, "new"), 0, {"train": [], "test": []}
        for split, people in splits.items():

            def write(number: int, people: People = people, split: str = split) -> str:
                rng = np.random.default_rng([seed, number])
                scene, made = _make(people, rng, number, side, pair_probability)
                return _write(new, number, scene, made)

            with ThreadPoolExecutor(_THREADS) as pool:
                numbers = range(first, first + counts[split])
                done = pool.map(write, numbers)
                bar = tqdm(done, f"{split} pictures", len(numbers), unit=" pictures")
                ids[split] = list(bar)
            first += counts[split]
        for split, names in (*ids.items(), ("all", ids["train"] + ids["test"])):
            (new / ID_FILES[split]).write_text("".join(f"{name}\n" for name in names))
        if out.exists():
            shutil.move(out, Path(temporary, "old"))
        new.rename(out)


def _write(root: Path, number: int, scene: Scene, made: Scenery) -> str:
    name = f"{number // 1000:05d}{number % 1000:03d}"
    path = item_path(root, name, ".jpg")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(made.pixels).save(path, quality=95, subsampling=0)
    np.save(path.with_suffix(".npy"), made.segment_map)
    info = {"caption": made.caption, "scene": scene.name, "segments": made.segments}
    path.with_suffix(".json").write_text(json.dumps(info))
    return name


def main() -> None:
    """Runs the command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m fd_jax.demo.scenes", description=__doc__, formatter_class=formatter
    )
    parser.add_argument("people", metavar="PEOPLE", nargs="+", type=Path, help="portraits, masks")
    parser.add_argument("out", metavar="SCENES", type=Path, help="folder to write")
    parser.add_argument("--num-images", type=int, default=12_000, help="(default: 12000)")
    parser.add_argument(
        "--pair-probability",
        type=float,
        default=0.35,
        metavar="P",
        help="probability of two people in an image (default: 0.35)",
    )
    parser.add_argument("--side", type=int, default=128, help="in pixels (default: 128)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier build")
    a = parser.parse_args()
    try:
        build(
            a.people,
            a.out,
            num_images=a.num_images,
            pair_probability=a.pair_probability,
            side=a.side,
            seed=a.seed,
            overwrite=a.overwrite,
        )
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"wrote {a.out}; fd-data check {a.out} --page page.png draws examples")


if __name__ == "__main__":
    main()
