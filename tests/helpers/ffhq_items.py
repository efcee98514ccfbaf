"""Small items and folders in the layout of FFHQ-FastComposer."""

import io
import json

import numpy as np
from PIL import Image

WORDS = ("a man", "a woman", "a boy", "a girl", "a dog")


def person(number, label="person"):
    """The segment of the i-th of `WORDS`, an upright strip, in a caption that lists them all."""
    start = sum(len(word) + 2 for word in WORDS[:number])
    return {
        "id": number + 1,
        "word": WORDS[number].split()[1],
        "start": start,
        "end": start + len(WORDS[number]),
        "bbox": [8 * number, 4, 8 * number + 8, 28],
        "coco_label": label,
        "score": 0.9,
    }


def item(count=1, *, height=32, width=48, seed=0, **changes):
    """Makes the contents of an item's files: `count` people in a caption of all `WORDS`."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    segments = [person(i) for i in range(count)]
    segment_map = np.zeros((height, width), np.uint8)
    for segment in segments:
        x1, y1, x2, y2 = segment["bbox"]
        segment_map[y1 + 1 : y2, x1 + 1 : x2] = segment["id"]
    content = {
        "image": np.asarray(image),
        "segment_map": segment_map,
        "caption": ", ".join(WORDS),
        "segments": segments,
    }
    return content | changes


def encoded(content):
    """The three files of an item, by suffix. Bytes are taken as they are."""

    def jpeg(pixels):
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG", quality=95)
        return stream.getvalue()

    def npy(array):
        stream = io.BytesIO()
        np.save(stream, array)
        return stream.getvalue()

    image, segment_map = content["image"], content["segment_map"]
    info = {key: content[key] for key in ("caption", "segments")}
    return {
        ".jpg": image if isinstance(image, bytes) else jpeg(image),
        ".npy": segment_map if isinstance(segment_map, bytes) else npy(segment_map),
        ".json": content.get("json", json.dumps(info).encode()),
    }


def write_folder(root, items, **splits):
    """Writes items 00000000, 00000001, ..., named by image_ids.txt and by `splits`, numbers each.

    Without splits all of them are in image_ids_train.txt.
    """
    ids = [f"{i:08d}" for i in range(len(items))]
    for name, content in zip(ids, items, strict=True):
        folder = root / name[:5]
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, data in encoded(content).items():
            (folder / f"{name}{suffix}").write_bytes(data)
    (root / "image_ids.txt").write_text("\n".join(ids))
    for split, numbers in (splits or {"train": range(len(ids))}).items():
        lines = "".join(f"{ids[number]}\n" for number in numbers)
        (root / f"image_ids_{split}.txt").write_text(lines)
    return root
