"""Cuts people out of portraits and stands them in painted scenes: data to train small models on.

    python -m fd_jax.demo.scenes PEOPLE SCENES

PEOPLE is one folder of portraits with masks, or several, in the layout of FFHQ-FastComposer, and
SCENES the folder to write, in the same layout: one or two people in front of one of the scenes of
`fd_jax.demo.painters`, with a caption that names people and scene, and a mask of each person.
People of PEOPLE's test list are in pictures of SCENES' test list alone.
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

from fd_jax.data.ffhq.folder import ID_FILES, has_split, item_path, open_source
from fd_jax.data.ffhq.record import DataError, Segment, decode_image, decode_map
from fd_jax.demo.painters import SCENES, Scene, paint
from fd_jax.errors import InputError

Rng = np.random.Generator

MIN_PEOPLE = 2
_MIN_SHARE = 0.02  # of a photograph that a person fills at least
_TEST_SHARE = 0.1  # pictures of test people per picture of the others
_TWO = 0.35  # how often there are two people
_PLAIN = 0.5  # how often the plainest words for a scene are chosen
_THREADS = 2
_HOW_TO_MASK = (
    "A mask is a .npy of uint8 of the photograph's size, with the id of the person's segment where "
    "the person is; any segmentation of people makes one, such as MediaPipe's selfie segmentation"
)
_FORMS = ("{who} {where}", "a photo of {who} {where}", "{who} standing {where}", "{where}, {who}")


class Cutout(NamedTuple):
    """A person without what is behind."""

    pixels: UInt8[np.ndarray, "h w 3"]
    is_person: Bool[np.ndarray, "h w"]
    noun: str  # as captions name them


class Person(NamedTuple):
    """A segment of a photograph."""

    number: int  # of the item in its source
    segment: Segment


class People:
    """The people of one split of folders in the layout of FFHQ-FastComposer.

    Raises:
        InputError: There are fewer than two, a mask is missing, or nobody is found in a photograph.
    """

    def __init__(self, roots: list[Path], split: str):
        try:
            self._source = open_source(roots, split)
        except DataError as error:
            raise DataError(f"{error}. {_HOW_TO_MASK}") from error
        with ThreadPoolExecutor(_THREADS) as pool:
            found = pool.map(self._find, range(len(self._source)))
            bar = tqdm(
                found, f"{split} people", len(self._source), unit=" photographs", leave=False
            )
            self.people = [person for item in bar for person in item]
        if len(self.people) < MIN_PEOPLE:
            where = " and ".join(map(str, roots))
            raise InputError(
                f"{where}: {len(self.people)} people in split {split!r}, expected at least "
                f"{MIN_PEOPLE}"
            )

    def _find(self, number: int) -> list[Person]:
        record = self._source[number]
        with_label = [s for s in record.segments if s.coco_label == "person"]
        pixels = decode_image(record.image, record.id)
        segment_map = decode_map(record.segment_map, record.id, *pixels.shape[:2])
        found = [s for s in with_label if np.mean(segment_map == s.id) >= _MIN_SHARE]
        if not found:
            ids = {s.id: float(np.mean(segment_map == s.id).round(4)) for s in with_label}
            raise DataError(
                f"item {record.id}: no person is found in the photograph: of its segments with "
                f"coco_label person, by id, the mask holds these shares: {ids}; expected one with "
                f"at least {_MIN_SHARE}. {_HOW_TO_MASK}"
            )
        return [Person(number, segment) for segment in found]

    def cut(self, person: Person) -> Cutout:
        """Returns a person, cut to the box of the mask, rounded where the photograph ends."""
        record = self._source[person.number]
        pixels = decode_image(record.image, record.id)
        segment_map = decode_map(record.segment_map, record.id, *pixels.shape[:2])
        is_person = segment_map == person.segment.id
        rows, columns = (np.flatnonzero(is_person.any(axis=axis)) for axis in (1, 0))
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        noun = record.caption[person.segment.start : person.segment.end].split()[-1:]
        return Cutout(pixels[box], _rounded(is_person[box]), *(noun or ["person"]))


def _rounded(is_person: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Shoulders that a photograph's side cuts off straight would end in mid-air: slope them."""
    height, width = is_person.shape
    up = np.arange(height)[::-1, None] / height
    across = (np.arange(width)[None, :] + 0.5) / width * 2 - 1
    return is_person & ((np.abs(across) ** 2.5 + (up / 0.85) ** 2 < 1) | (np.abs(across) < 0.6))


class Scenery(NamedTuple):
    """A finished picture."""

    pixels: UInt8[np.ndarray, "side side 3"]
    segment_map: UInt8[np.ndarray, "side side"]
    caption: str
    segments: list[dict]  # as the JSON file of an item has them


def compose(scene: Scene, cutouts: list[Cutout], rng: Rng, side: int) -> Scenery | None:
    """Paints a scene and stands one or two people in it, from left to right.

    Returns:
        None if one hides another.
    """
    pixels = paint(scene, rng, side).astype(np.float32)
    light = pixels.mean(axis=(0, 1))
    segment_map = np.zeros((side, side), np.uint8)
    order = rng.permutation(len(cutouts))  # the last is in front
    places = (0.5,) if len(cutouts) == 1 else (0.27, 0.73)
    for i in order:
        alone = len(cutouts) == 1
        height = side * (rng.uniform(0.8, 0.95) if alone else rng.uniform(0.64, 0.74))
        x = side * (places[i] + rng.uniform(-0.08, 0.08) * (1 if alone else 0.4))
        person, alpha = _scaled(cutouts[i], height, rng, light)
        rows, columns = alpha.shape
        left = round(x - columns / 2)
        seen = np.s_[max(-left, 0) : min(side - left, columns)]
        where = np.s_[side - rows :, max(left, 0) : min(left + columns, side)]
        alpha, person = alpha[:, seen, None], person[:, seen]
        pixels[where] = alpha * person + (1 - alpha) * pixels[where]
        segment_map[where][alpha[..., 0] > 0.5] = i + 1
    if any(np.mean(segment_map == i + 1) < _MIN_SHARE for i in range(len(cutouts))):
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


def _scaled(
    cutout: Cutout, height: float, rng: Rng, light: Float[np.ndarray, "3"]
) -> tuple[Float[np.ndarray, "h w 3"], Float[np.ndarray, "h w"]]:
    """A person at this height in the light of the scene, and how much each pixel is theirs."""
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
    """A caption, and where in it each person is named."""
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
    rows, columns = (np.flatnonzero(is_person.any(axis=axis)) for axis in (1, 0))
    return [int(x) for x in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)]


def _make(people: People, rng: Rng, number: int, side: int) -> tuple[Scene, Scenery]:
    """One picture. Scenes take turns, people are drawn."""
    scene = SCENES[number % len(SCENES)]
    while True:
        count = 2 if rng.random() < _TWO else 1
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
    side: int = 128,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Writes a training set, whole or not at all. The same on every machine.

    Args:
        roots: Folders of portraits with masks.
        out: Folder to write.
        num_images: Pictures of people who are not on test lists; a tenth as many of those who are.
        side: Height and width of the pictures.
        seed: Of all that is drawn.
        overwrite: Whether to replace a folder that an earlier build wrote.

    Raises:
        InputError: The people cannot be used, or the folder is not empty.
    """
    for name, value, low in (("num_images", num_images, 1), ("side", side, 16), ("seed", seed, 0)):
        if value < low:
            raise InputError(f"{name} is {value}, expected at least {low}")
    out = out.absolute()
    held = {path.name for path in out.iterdir()} if out.exists() else set()
    if held and not overwrite:
        raise InputError(f"{out} is not empty, expected a new folder, or --overwrite")
    if held and ID_FILES["all"] not in held:
        raise InputError(f"{out} holds no {ID_FILES['all']}: no build wrote it, it stays as it is")
    splits = {"train": People(roots, "train")}
    # A folder that is named twice counts twice in training alone.
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
                scene, made = _make(people, rng, number, side)
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
    """Builds what the command line asks for."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m fd_jax.demo.scenes", description=__doc__, formatter_class=formatter
    )
    parser.add_argument("people", metavar="PEOPLE", nargs="+", type=Path, help="portraits, masks")
    parser.add_argument("out", metavar="SCENES", type=Path, help="folder to write")
    parser.add_argument("--num-images", type=int, default=12_000, help="(default: 12000)")
    parser.add_argument("--side", type=int, default=128, help="in pixels (default: 128)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier build")
    a = parser.parse_args()
    try:
        build(
            a.people,
            a.out,
            num_images=a.num_images,
            side=a.side,
            seed=a.seed,
            overwrite=a.overwrite,
        )
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"wrote {a.out}; python -m fd_jax.data.ffhq check {a.out} --page page.png draws examples")


if __name__ == "__main__":
    main()
