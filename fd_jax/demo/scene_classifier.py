"""Classifies painted scenes, to score whether an image shows the scene of its prompt.

The classifier is trained on painted scenes, and shares nothing with the models that it judges.
"""

import functools
import itertools
import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

from fd_jax.assets import PEOPLE
from fd_jax.demo import painters, portraits, scenes
from fd_jax.demo.grid import compose_small
from fd_jax.demo.painters import Scene
from fd_jax.params import Flat, flat, nested

MAX_SIDE = 64  # input of the classifier; larger images are reduced to it
_WIDTHS = 24, 48, 96
_BATCH = 64
_LEARNING_RATE = 3e-3
_THREADS = 2
_TWO = 0.5  # probability of two people


class SceneNet(nnx.Module):
    """Three convolutions and a linear layer over the means and maxima of their output.

    Args:
        num_scenes: Number of classes.
        rngs: Keys for parameter initialization. None is kept after construction.
    """

    def __init__(self, num_scenes: int, *, rngs: nnx.Rngs):
        widths = (3, *_WIDTHS)
        self.convolutions = nnx.List(
            [
                nnx.Conv(before, after, (3, 3), strides=2, rngs=rngs)
                for before, after in itertools.pairwise(widths)
            ]
        )
        self.out = nnx.Linear(2 * widths[-1], num_scenes, rngs=rngs)

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b n"]:
        """Computes a logit for each scene, from images in 0..1."""
        x = 2 * images - 1
        for convolution in self.convolutions:
            x = nnx.relu(convolution(x))
        return self.out(jnp.concatenate([x.mean(axis=(1, 2)), x.max(axis=(1, 2))], axis=-1))


class SceneClassifier(NamedTuple):
    """A trained classifier."""

    params: Flat
    num_scenes: int
    side: int  # height and width of its input
    accuracy: float  # on held-out painted scenes, with other people

    def __call__(self, pictures: Iterable[np.ndarray]) -> Float[np.ndarray, "b n"]:
        """Computes the probability of each scene, from uint8 images."""
        pixels = np.stack([_reduced(picture, self.side) for picture in pictures])
        batches = [pixels[i : i + _BATCH] for i in range(0, len(pixels), _BATCH)]
        found = [_probabilities(self.num_scenes, self.params, batch) for batch in batches]
        return np.concatenate(found)


def classifier_side(side: int) -> int:
    """Returns the side of the classifier's input for images of this side."""
    return min(side, MAX_SIDE)


def load_or_train(
    path: Path,
    scene_list: Sequence[Scene],
    side: int,
    *,
    num_pictures: int = 200,
    num_steps: int = 500,
    progress: bool = False,
) -> SceneClassifier:
    """Loads the classifier that an earlier call wrote, or trains and writes it.

    Args:
        path: safetensors file; replaced if it is damaged or was trained differently.
        scene_list: The scenes.
        side: Height and width of the images in pixels.
        num_pictures: Painted training images per scene; a fifth as many are held out.
        num_steps: Optimizer steps.
        progress: Whether to show progress bars.
    """
    side = classifier_side(side)
    code = b"".join(
        Path(str(module.__file__)).read_bytes() for module in (painters, portraits, scenes)
    )
    recipe = {
        "scenes": [scene.name for scene in scene_list],
        "side": side,
        "pictures": num_pictures,
        "steps": num_steps,
        "code": zlib.crc32(code + Path(__file__).read_bytes()),
    }
    found = _read(path, recipe)
    if found is None:
        found = _train(scene_list, side, num_pictures, num_steps, progress)
        params = {name: np.asarray(leaf) for name, leaf in found.params.items()}
        metadata = {"recipe": json.dumps(recipe), "accuracy": repr(found.accuracy)}
        save_file(params, path, metadata)
    return found


def _read(path: Path, recipe: dict) -> SceneClassifier | None:
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if json.loads(metadata.get("recipe", "null")) != recipe:
                return None
            params = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            accuracy = float(metadata["accuracy"])
    except (OSError, SafetensorError, ValueError, KeyError):
        return None
    return SceneClassifier(params, len(recipe["scenes"]), recipe["side"], accuracy)


def _train(
    scene_list: Sequence[Scene], side: int, num_pictures: int, num_steps: int, progress: bool
) -> SceneClassifier:
    count = len(scene_list) * num_pictures
    pictures, labels = _paint(scene_list, "train", count, side, progress)
    params = _initial(len(scene_list))
    optimizer = optax.adam(optax.cosine_decay_schedule(_LEARNING_RATE, num_steps))
    state, rng = optimizer.init(params), np.random.default_rng(0)
    step = _make_step(len(scene_list), optimizer)
    for i in tqdm(range(num_steps), "learning scenes", unit=" steps", disable=not progress):
        rows = rng.integers(count, size=_BATCH)
        params, state = step(params, state, jax.random.key(i), pictures[rows], labels[rows])

    held_out = max(count // 5, len(scene_list))
    pictures, labels = _paint(scene_list, "test", held_out, side, progress)
    classifier = SceneClassifier(params, len(scene_list), side, 0.0)
    found = classifier(pictures).argmax(axis=1)
    return classifier._replace(accuracy=float(np.mean(found == labels)))


def _paint(
    scene_list: Sequence[Scene], split: Any, count: int, side: int, progress: bool
) -> tuple[UInt8[np.ndarray, "n side side 3"], Int[np.ndarray, " n"]]:
    """Paints scenes in turn, with one or two of the bundled people of a split."""
    people = portraits.People([PEOPLE], split)
    cutouts = [people.cut(person) for person in people.people]
    labels = np.arange(count) % len(scene_list)

    def paint(number: int) -> np.ndarray:
        rng = np.random.default_rng([split == "test", number])
        chosen = rng.choice(len(cutouts), 2 if rng.random() < _TWO else 1, replace=False)
        scene = scene_list[labels[number]]
        return compose_small(scene, [cutouts[i] for i in chosen], rng, side)

    with ThreadPoolExecutor(_THREADS) as pool:
        done = pool.map(paint, range(count))
        bar = tqdm(done, f"painting {split} pictures", count, disable=not progress, leave=False)
        return np.stack(list(bar)), labels


def _reduced(picture: np.ndarray, side: int) -> np.ndarray:
    if picture.shape[:2] == (side, side):
        return picture
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BOX))


@functools.cache
def _graph(num_scenes: int) -> nnx.GraphDef:
    return nnx.split(nnx.eval_shape(lambda: SceneNet(num_scenes, rngs=nnx.Rngs(0))))[0]


def _initial(num_scenes: int) -> Flat:
    return flat(nnx.to_pure_dict(nnx.split(SceneNet(num_scenes, rngs=nnx.Rngs(0)))[1]))


def _logits(num_scenes: int, params: Flat, images: Float[Array, "b h w 3"]) -> Array:
    return nnx.merge(_graph(num_scenes), nested(params))(images)


@functools.partial(jax.jit, static_argnums=0)
def _probabilities(num_scenes: int, params: Flat, pixels: UInt8[Array, "b h w 3"]) -> Array:
    return jax.nn.softmax(_logits(num_scenes, params, pixels / 255))


def _make_step(num_scenes: int, optimizer: optax.GradientTransformation) -> Callable:
    def loss(params: Flat, images: Array, labels: Array) -> Array:
        logits = _logits(num_scenes, params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def step(params: Flat, state: optax.OptState, key: Array, pixels: Array, labels: Array):
        gradients = jax.grad(loss)(params, soften(key, pixels / 255), labels)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state

    return step


def soften(key: Array, images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Augments images in 0..1: mirrors, blurs, brightens and adds noise, at random per image.

    Models' images are softer than painted ones; the classifier must not depend on that.
    """
    keys = jax.random.split(key, 5)
    shape = (images.shape[0], 1, 1, 1)
    mirrored = jax.random.bernoulli(keys[0], shape=shape)
    images = jnp.where(mirrored, images[:, :, ::-1], images)
    blurred = _blur(_blur(images, 1), 2)
    images += jax.random.uniform(keys[1], shape) * (blurred - images)
    images *= jax.random.uniform(keys[2], shape, minval=0.8, maxval=1.2)
    noise = jax.random.normal(keys[3], images.shape)
    images += jax.random.uniform(keys[4], shape, maxval=0.06) * noise
    return images.clip(0, 1)


def _blur(images: Float[Array, "b h w 3"], axis: int) -> Float[Array, "b h w 3"]:
    """Averages five pixels along an axis."""
    length = images.shape[axis]
    padded = jnp.pad(images, [(2 * (i == axis), 2 * (i == axis)) for i in range(4)], "edge")
    total: Any = sum(jax.lax.slice_in_dim(padded, i, i + length, axis=axis) for i in range(5))
    return total / 5
