"""Trains the image encoder of the bundled models: it learns from a recognizer of faces.

    python -m fd_jax.demo.train_encoder PHOTOGRAPHS... OUT --recognizer FOLDER

PHOTOGRAPHS are portraits with masks in the layout of FFHQ-FastComposer. FOLDER holds OpenCV's
face_recognition_sface_2021dec.onnx. The first entries of an embedding learn a subject's coarse
colours (`fd_jax.demo.appearance`), the others the recognizer's embedding, of which they hold as
many principal components as there is room for. OUT becomes a folder for `--init.image-encoder`,
with averaged parameters, and `log.jsonl`.
"""

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, UInt8
from PIL import Image
from tqdm import tqdm

from fd_jax import distributed
from fd_jax import params as parameters
from fd_jax.architecture import CLIPVisionConfig
from fd_jax.assets import DEMO
from fd_jax.checkpoints.diffusers import read_config, write_folder
from fd_jax.conditioning.clip_vision import ImageEncoder
from fd_jax.demo.appearance import SIZE, appearance
from fd_jax.demo.painters import backdrop
from fd_jax.demo.taught_faces import SIDE, TaughtFaces, teach
from fd_jax.errors import InputError
from fd_jax.faces.recognizers import Recognizer, load_recognizer
from fd_jax.files import check_folder
from fd_jax.networks import Network, make_network
from fd_jax.params import Flat

_BATCH_SIZE = 32
_LEARNING_RATE = 1e-3
_WARMUP_STEPS = 500
_EMA_DECAY = 0.999
_CLEAN_SIDE = 64  # of the image whose colours are compared
_LOG_EVERY = 100
_AHEAD = 4  # batches that are made while others are trained on

Metrics = dict[str, Float[Array, ""]]


class Components(NamedTuple):
    """Principal components of embeddings, which have unit variance on average."""

    mean: Float[np.ndarray, " d"]
    basis: Float[np.ndarray, "k d"]

    @classmethod
    def of(cls, faces: TaughtFaces, count: int) -> "Components":
        """Returns the first components, about the mean of real faces.

        Raises:
            InputError: There are fewer faces than components.
        """
        if len(faces.embeds) < count:
            raise InputError(f"there are {len(faces.embeds)} faces, expected at least {count}")
        real = faces.embeds[~faces.is_average]
        mean = real.mean(axis=0)
        basis = np.linalg.svd(faces.embeds - mean, full_matrices=False)[2][:count]
        return cls(mean, basis / np.sqrt(((real - mean) @ basis.T).var(axis=0).mean()))

    def __call__(self, embeds: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
        return ((embeds - self.mean) @ self.basis.T).astype(np.float32)


class Batch(NamedTuple):
    """Photographs and what an encoder should say of them."""

    photographs: UInt8[np.ndarray, "b side side 3"]
    clean: UInt8[np.ndarray, "b 64 64 4"]  # the same without background, and the mask
    targets: Float[np.ndarray, "b k"]


class State(NamedTuple):
    """Parameters by path, their averages, and the optimizer's state."""

    params: Flat
    ema: Flat
    optimizer: Any


def make_batch(
    faces: TaughtFaces,
    targets: Float[np.ndarray, "n k"],
    rows: np.ndarray,
    side: int,
    rng: np.random.Generator,
    *,
    augments: bool,
) -> Batch:
    """Composes photographs of some faces, each in front of a backdrop of its own."""
    made = [_photograph(faces.cutouts[row], side, rng, augments=augments) for row in rows]
    photographs, clean = map(np.stack, zip(*made, strict=True))
    return Batch(photographs, clean, targets[rows])


def _photograph(
    cutout: UInt8[np.ndarray, "128 128 4"], side: int, rng: np.random.Generator, *, augments: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Returns a photograph, and the same crop without background with its mask."""
    size, x, y = 112.0, 0.0, 0.0  # of the crop, from head and shoulders to a face with its hair
    if augments:
        if rng.random() < 0.5:
            cutout = cutout[:, ::-1]
        size = rng.uniform(84, SIDE)
        x, y = rng.uniform(-6, 6), rng.uniform(-5, 5)
    pixels, mask = cutout[..., :3].astype(np.float32), cutout[..., 3:].astype(np.float32)
    if augments:
        slope = 1 + rng.uniform(-0.1, 0.1) * np.linspace(-1, 1, SIDE)[:, None]
        light = rng.uniform(0.85, 1.12) * (1 + rng.normal(0, 0.04, 3)) * slope
        pixels = ((pixels - 128) * rng.uniform(0.9, 1.1) + 128) * light
    pixels = pixels.clip(0, 255)
    left = SIDE / 2 - size / 2 + x
    top = float(np.clip(SIDE / 2 - 0.52 * size + y, 0, SIDE - size))
    box = max(left, 0.0), top, min(left + size, float(SIDE)), top + size
    share = mask / 255
    full = share * pixels + (1 - share) * backdrop(rng, SIDE).astype(np.float32)
    return (
        _crop(full, side, box),
        _crop(np.concatenate([pixels, mask], axis=-1), _CLEAN_SIDE, box),
    )


def _crop(pixels: np.ndarray, side: int, box: tuple[float, float, float, float]) -> np.ndarray:
    image = Image.fromarray(pixels.astype(np.uint8))
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, box=box))


def loss(network: Network, params: Flat, batch: Batch) -> tuple[Float[Array, ""], Metrics]:
    """Returns the loss of a batch, and its parts."""
    encoder: ImageEncoder = network.bind(parameters.nested(params))
    embeds = encoder(jnp.asarray(batch.photographs, jnp.float32) / 255)
    clean = jnp.asarray(batch.clean)
    masks = (clean[..., 3] > 127).astype(jnp.float32)[:, None]
    colours = appearance(clean[..., :3].astype(jnp.float32) / 127.5 - 1, masks)[:, 0]
    found, wanted = embeds[:, SIZE:], jnp.asarray(batch.targets)
    lengths = jnp.linalg.norm(found, axis=-1) * jnp.linalg.norm(wanted, axis=-1)
    cosine = jnp.mean((found * wanted).sum(axis=-1) / jnp.maximum(lengths, 1e-6))
    error = jnp.mean((embeds[:, :SIZE] - colours) ** 2)
    total = error + (1 - cosine) + 0.2 * jnp.mean((found - wanted) ** 2)
    return total, {"loss": total, "appearance": error, "cosine": cosine}


def train(
    roots: list[Path],
    out: Path,
    recognizer: Recognizer,
    config: CLIPVisionConfig,
    *,
    num_steps: int,
    num_averages: int,
    seed: int,
) -> None:
    """Trains an image encoder and writes it.

    Args:
        roots: Portraits with masks, of train and test split. People of the latter are held out.
        out: Folder to write.
        recognizer: Teacher.
        config: Architecture.
        num_steps: Steps of 32 photographs.
        num_averages: Pairs of faces whose averages are learned from, too.
        seed: Seed of everything.

    Raises:
        InputError: A folder or the recognizer cannot be used, or the embedding has no room.
    """
    if (room := config.projection_dim - SIZE) < 1:
        raise InputError(f"projection_dim is {config.projection_dim}, expected at least {SIZE + 1}")
    check_folder(out)
    faces = teach(roots, "train", recognizer, num_averages, seed)
    held_out = teach(roots, "test", recognizer, 0, seed)
    components = Components.of(faces, room)
    targets = components(faces.embeds)
    num_real = int((~faces.is_average).sum())
    network = make_network(lambda rngs: ImageEncoder(config, rngs=rngs))
    params: Flat = {
        path: jnp.asarray(parameters.initial(f"image_encoder/{path}", leaf.shape, seed))
        for path, leaf in parameters.flat(network.abstract).items()
    }
    rate = optax.warmup_cosine_decay_schedule(
        0.0, _LEARNING_RATE, _WARMUP_STEPS, num_steps + _WARMUP_STEPS
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.05))
    state = State(params, params, optimizer.init(params))

    @jax.jit
    def step(state: State, batch: Batch, i: Array) -> tuple[State, Metrics]:
        gradient, metrics = jax.grad(partial(loss, network), has_aux=True)(state.params, batch)
        updates, moments = optimizer.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = jnp.minimum(_EMA_DECAY, (1 + i) / (10 + i))
        ema = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, state.ema, params)
        return State(params, ema, moments), metrics  # pyright: ignore[reportArgumentType]

    def draw(i: int) -> Batch:
        rng = np.random.default_rng([seed, i])
        # Half of them are real faces, whatever the number of averages.
        limit = np.where(rng.random(_BATCH_SIZE) < 0.5, num_real, len(targets))
        rows = rng.integers(limit)
        return make_batch(faces, targets, rows, config.image_size, rng, augments=True)

    rows, rng = np.arange(len(held_out.embeds)), np.random.default_rng(seed)
    others = components(held_out.embeds)
    held = make_batch(held_out, others, rows, config.image_size, rng, augments=False)
    evaluate = jax.jit(lambda params, batch: loss(network, params, batch)[1])
    out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(1) as pool, (out / "log.jsonl").open("w") as log:
        waiting = [pool.submit(draw, i) for i in range(_AHEAD)]
        bar = tqdm(range(num_steps), "training", unit=" steps")
        seen: list[Metrics] = []
        for i in bar:
            batch = waiting.pop(0).result()
            waiting.append(pool.submit(draw, i + _AHEAD))
            state, metrics = step(state, batch, jnp.asarray(i))
            seen.append(metrics)
            if (i + 1) % _LOG_EVERY == 0 or i + 1 == num_steps:
                means = {name: float(np.mean([each[name] for each in seen])) for name in metrics}
                apart = {f"held_out_{k}": float(v) for k, v in evaluate(state.ema, held).items()}
                log.write(json.dumps({"step": i + 1, **means, **apart}) + "\n")
                log.flush()
                bar.set_postfix(cosine=f"{means['cosine']:.3f}")
                seen = []
    write_folder("image_encoder", out, jax.device_get(parameters.nested(state.ema)), config)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m fd_jax.demo.train_encoder",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("photographs", metavar="PHOTOGRAPHS", nargs="+", type=Path, help="portraits with masks")
    add("out", metavar="OUT", type=Path, help="folder to write")
    add("--recognizer", type=Path, required=True, help="SFace, the folder of it, or an ONNX file")
    add(
        "--config",
        type=Path,
        default=DEMO / "clip",
        help="folder of the architecture's config.json (default: the bundled one)",
    )
    add("--num-steps", type=int, default=3000, help="of 32 photographs (default: 3000)")
    add("--num-averages", type=int, default=2500, help="pairs of faces (default: 2500)")
    add("--seed", type=int, default=0, help="(default: 0)")
    a = parser.parse_args()
    distributed.enable_compile_cache()
    try:
        train(
            a.photographs,
            a.out,
            load_recognizer(a.recognizer),
            read_config("image_encoder", a.config),
            num_steps=a.num_steps,
            num_averages=a.num_averages,
            seed=a.seed,
        )
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"wrote {a.out}")


if __name__ == "__main__":
    main()
