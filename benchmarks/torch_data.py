"""Training examples as the released dataset makes them, with torchvision's transforms of tensors.

And the photographs to make them of, which are noise with people of one colour.
"""

import json
from pathlib import Path

import numpy as np
import torch
import torchvision.transforms as T
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, read_image
from torchvision.transforms import functional as TF

from fd_jax.conditioning.clip_vision import MEAN, STD
from fd_jax.data.captions import Tokenizer, mark_subjects, tokenize
from fd_jax.data.config import DataConfig
from fd_jax.data.ffhq.folder import ID_FILES, item_path

SHAPES = ((1024, 1024), (1024, 1024), (1024, 1365), (1365, 1024))  # height, width; in turn
WORDS = ("a man", "a woman")


def write_photographs(root: Path, count: int) -> list[str]:
    """Writes items of one or two people in the layout of FFHQ-FastComposer, and returns the ids.

    1024 px on the short side: half of them are squares, a quarter each landscapes and portraits.
    """
    rng = np.random.default_rng(0)
    ids = [f"{i:08d}" for i in range(count)]
    for i, name in enumerate(ids):
        height, width = SHAPES[i % len(SHAPES)]
        coarse = Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8))
        image = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
        image = image + rng.normal(0, 4, image.shape)
        segment_map, segments = np.zeros((height, width), np.uint8), []
        rows, columns = np.mgrid[:height, :width]
        people = 1 + i % 3 % 2
        for k in range(people):
            x, y, rx, ry = (k + 0.5) / people * width, 0.55 * height, 200, 400
            inside = ((columns - x) / rx) ** 2 + ((rows - y) / ry) ** 2 < 1
            segment_map[inside] = k + 1
            image[inside] = 0.5 * image[inside] + rng.integers(0, 128, 3)
            start = sum(len(word) + 1 for word in WORDS[:k])
            box = [int(x) - rx, int(y) - ry, int(x) + rx, int(y) + ry]
            span = {"start": start, "end": start + len(WORDS[k])}
            segments.append({"id": k + 1, "bbox": box, "coco_label": "person", **span})
        path = item_path(root, name, ".jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        image = np.clip(image, 0, 255).astype(np.uint8)
        Image.fromarray(image).save(path, quality=95)
        np.save(path.with_suffix(".npy"), segment_map)
        info = {"caption": " ".join(WORDS[:people]) + " in a park", "segments": segments}
        path.with_suffix(".json").write_text(json.dumps(info))
    for split in ("train", "all"):
        (root / ID_FILES[split]).write_text("\n".join(ids))
    return ids


class ZoomIn(torch.nn.Module):
    """Enlarges once to twice, then keeps the top square."""

    def forward(self, image: Tensor) -> Tensor:
        factor = 1 + float(torch.rand(()))
        height, width = image.shape[1:]
        image = TF.resize(image, [int(factor * height), int(factor * width)], antialias=True)
        return image[:, : image.shape[2]]


def pad_to_square(image: Tensor) -> Tensor:
    height, width = image.shape[1:]
    x, y = max(height - width, 0) // 2, max(width - height, 0) // 2
    return TF.pad(image, [x, y, x, y])


class Dataset:
    """Item by item, what the released dataset gives a step; nobody is dropped.

    Args:
        root: Folder of the items.
        config: Sizes.
        tokenizer: fd_jax's, as is the search for the subjects' words.
    """

    def __init__(self, root: Path, config: DataConfig, tokenizer: Tokenizer):
        self.root, self.config, self.tokenizer = root, config, tokenizer
        side = config.subject_resolution
        zoom, turn = T.RandomApply([ZoomIn()], 0.5), T.InterpolationMode.BILINEAR
        fit = [T.Lambda(pad_to_square), T.Resize((side, side), antialias=True)]
        augment = [
            T.RandomApply([T.RandomRotation(30, turn)], 0.75),
            T.RandomApply([T.ColorJitter(0.5, 0.5, 0.5, 0.5)], 0.5),
            T.RandomApply([T.GaussianBlur(5, (0.1, 2.0))], 0.5),
            T.RandomGrayscale(0.1),
            T.RandomHorizontalFlip(),
            T.RandomApply([T.ElasticTransform()], 0.5),
        ]
        self.fit = T.Compose(fit)
        self.augment = T.Compose([zoom, *fit, *augment])
        self.normalize = T.Compose([T.ConvertImageDtype(torch.float32), T.Normalize(MEAN, STD)])

    def __call__(
        self, name: str, *, training: bool, background: Tensor | None = None
    ) -> dict[str, Tensor]:
        path = item_path(self.root, name, ".jpg")
        image = read_image(str(path), ImageReadMode.RGB)
        segment_map = torch.from_numpy(np.load(path.with_suffix(".npy")))
        info = json.loads(path.with_suffix(".json").read_text())
        segments = sorted(info["segments"], key=lambda segment: segment["end"])
        marked = mark_subjects(info["caption"], [segment["end"] for segment in segments])
        caption = tokenize(self.tokenizer, marked)
        if background is None:
            background = torch.randint(0, 255, image.shape, dtype=torch.uint8)
        room, side = self.config.max_subjects, self.config.subject_resolution
        pixels = torch.zeros(room, 3, side, side)
        fitted, fitted_map = self._fit(image, segment_map, flip=training and torch.rand(()) < 0.5)
        masks = torch.zeros(room, *fitted_map.shape)
        for i, segment in enumerate(segments):
            x1, y1, x2, y2 = segment["bbox"]
            outside = segment_map != segment["id"]
            alone = image.clone()
            alone[:, outside] = background[:, outside]
            crop = alone[:, y1:y2, x1:x2]
            change = self.augment if training and self.config.augment else self.fit
            pixels[i] = self.normalize(change(crop))
            masks[i] = fitted_map == segment["id"]
        return {
            "image": fitted.float() / 127.5 - 1,
            "segment_map": fitted_map,
            "masks": masks,
            "pixels": pixels,
            "input_ids": torch.from_numpy(caption.input_ids),
            "index": torch.from_numpy(caption.subject_token_index),
            "present": torch.from_numpy(caption.has_subject),
        }

    def _fit(self, image: Tensor, segment_map: Tensor, *, flip: bool) -> tuple[Tensor, Tensor]:
        side = self.config.resolution
        image = TF.resize(image, side, antialias=True)
        segment_map = TF.resize(segment_map[None], side, T.InterpolationMode.NEAREST)
        if flip:
            image, segment_map = TF.hflip(image), TF.hflip(segment_map)
        if image.shape[1] > image.shape[2]:  # a portrait
            image, segment_map = (
                TF.resize(pad_to_square(x), [side, side], antialias=True)
                for x in (image, segment_map)
            )
        else:
            image, segment_map = (TF.center_crop(x, [side, side]) for x in (image, segment_map))
        return image, segment_map[0]
