"""A training run, put together: config to data, networks, state and loop."""

import dataclasses
import itertools
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fd_jax import distributed, sharding
from fd_jax.assets import TOKENIZER
from fd_jax.checkpoints.run.manager import RunCheckpoints
from fd_jax.config import to_json
from fd_jax.data.captions import load_tokenizer
from fd_jax.data.examples import Example
from fd_jax.data.loader import Loader, held_out
from fd_jax.errors import InputError
from fd_jax.files import check_folder, read_json, write_json
from fd_jax.networks import Networks, make_networks
from fd_jax.ops.layers import as_dtype
from fd_jax.training import latent_cache, metrics
from fd_jax.training.config import TrainConfig, check_same
from fd_jax.training.initialize import Sizes, read_sizes
from fd_jax.training.loop import Loop, Tools
from fd_jax.training.model import Model
from fd_jax.training.objective import check_embeds, check_levels
from fd_jax.training.optimizer import learning_rate
from fd_jax.training.prefetch import DevicePrefetcher
from fd_jax.training.preview import Preview, Reconstructions

CONFIG_FILE = "config.json"


def train(config: TrainConfig, workdir: Path) -> int | None:
    """Trains, from the start or from where the run in `workdir` was stopped.

    Returns:
        The number of the signal that stopped it before its last step, if one did.

    Raises:
        InputError: Config, data, a checkpoint or the folder cannot be used.
        NonFiniteError: The loss is not finite.
    """
    mesh = sharding.make_mesh(fsdp=config.mesh.fsdp)
    _check(config, mesh)
    check_folder(workdir)
    sizes = _sizes(config)
    tokenizer_folder = config.init.base and config.init.base / "tokenizer"
    load = partial(Loader, config.data, tokenizer_folder, config.loop.seed)
    loader = load()
    stored = _stored(workdir, config, loader)
    compute = config.compute
    networks = make_networks(
        sizes.configs, dtype=compute.dtype, attention=compute.attention, remat=compute.remat
    )
    preview = _preview(config, networks, sizes, mesh, tokenizer_folder)
    evaluation = _held_out(config, tokenizer_folder)
    loop = config.loop
    folder = RunCheckpoints(
        workdir,
        save_every=loop.checkpoint_every,
        keep_latest=loop.keep_latest,
        keep_every=loop.keep_every,
    )
    with folder as checkpoints, jax.default_matmul_precision(_precision(compute.dtype)):
        model = Model(config, sizes, networks, mesh)
        latent_cache.check(config, model.factors)
        state, frozen, meta = model.begin(workdir, checkpoints)
        if not stored and jax.process_index() == 0:
            _write_stored(workdir, config, loader)
        if meta is not None or config.data.latent_cache is not None:
            loader.close()
            cache = None
            if config.data.latent_cache is not None:
                tokenizer = load_tokenizer(tokenizer_folder or TOKENIZER)
                cache = latent_cache.build(config, loader.source, tokenizer, networks, frozen)
            loader = load(position=meta["position"] if meta else 0, latent_cache=cache)
        feed = DevicePrefetcher(loader, mesh)
        tools = Tools(
            train_step=model.train_step(state),
            evaluate=model.evaluate(evaluation) if evaluation else None,
            preview=preview,
            store=checkpoints,
            feed=feed,
            name=loader.ids,
            learning_rate=learning_rate(config.optimizer, loop.num_steps),
            flops=model.flops(state, frozen),
        )
        try:
            return Loop(config, workdir, mesh, tools, state, frozen, meta or {}).run()
        finally:
            feed.close()


def _check(config: TrainConfig, mesh: Mesh) -> None:
    """Raises InputError on what can be known before anything is read."""
    parts = mesh.size * config.compute.accumulation
    if config.data.batch_size % parts:
        raise InputError(
            f"data.batch_size is {config.data.batch_size}, expected a multiple of {parts}: "
            f"{mesh.size} devices times {config.compute.accumulation}, compute.accumulation"
        )
    kind = config.objective.kind
    if kind in ("sdm", "encoder") and config.data.max_subjects < 1:
        raise InputError(f"data.max_subjects is 0, expected at least 1 for an {kind}")
    if kind == "encoder" and config.preview.prompts + config.preview.references:
        raise InputError("preview is not empty, expected no preview: an encoder makes no pictures")
    if kind == "vae" and config.preview.prompts:
        raise InputError(
            f"preview.prompts is {config.preview.prompts}, expected none for a vae: it makes "
            "preview.references again"
        )
    if config.log.tensorboard:
        metrics.require("tensorboardX", "--log.tensorboard")
    if config.log.wandb is not None:
        metrics.require("wandb", "--log.wandb")


def _sizes(config: TrainConfig) -> Sizes:
    sizes = read_sizes(config.init, config.model)
    if (kind := config.objective.prediction_type) is not None:
        schedule = dataclasses.replace(sizes.schedule, prediction_type=kind)
        sizes = sizes._replace(schedule=schedule)
    check_levels(config.objective, sizes.configs.unet.attending_levels)
    check_embeds(config.objective, sizes.configs.image_encoder.projection_dim)
    unit = sizes.configs.vae.downscale * sizes.configs.unet.downscale
    if config.data.resolution % unit:
        raise InputError(
            f"data.resolution is {config.data.resolution}, expected a multiple of {unit}, by which "
            "autoencoder and UNet shrink images"
        )
    # What the sampler makes by default is of the size that was trained.
    latents = config.data.resolution // sizes.configs.vae.downscale
    unet = dataclasses.replace(sizes.configs.unet, sample_size=latents)
    vae = dataclasses.replace(sizes.configs.vae, sample_size=config.data.resolution)
    return sizes._replace(configs=sizes.configs._replace(unet=unet, vae=vae))


def _stored(workdir: Path, config: TrainConfig, loader: Loader) -> bool:
    """Whether there is a run in the folder. Raises InputError if it is another one."""
    path = workdir / CONFIG_FILE
    if not path.exists():
        return False
    content = read_json(path)
    check_same(content.get("settings", {}), config, str(workdir))
    if (data := content.get("data")) != loader.fingerprint:
        raise InputError(
            f"{workdir} holds a run on other data: {data} there, {loader.fingerprint} "
            "here; expected the same items, or a new --workdir"
        )
    return True


def _write_stored(workdir: Path, config: TrainConfig, loader: Loader) -> None:
    content = {
        "settings": to_json(config),
        "data": loader.fingerprint,
        "versions": distributed.versions(),
    }
    write_json(workdir / CONFIG_FILE, content)


def _held_out(config: TrainConfig, tokenizer_folder: Path | None) -> list[Example]:
    if not config.loop.eval_every:
        return []
    batches = held_out(config.data, tokenizer_folder, seed=config.loop.seed)
    kept = list(itertools.islice(batches, config.loop.eval_batches))
    if not kept and jax.process_index() == 0:
        print("the data has no test list: nothing is measured on held-out images")
    return kept


def _preview(
    config: TrainConfig,
    networks: Networks,
    sizes: Sizes,
    mesh: Mesh,
    tokenizer_folder: Path | None,
) -> Preview | Reconstructions | None:
    is_vae = config.objective.kind == "vae"
    shown = config.preview.references if is_vae else config.preview.prompts
    if not shown or not config.loop.preview_every:
        return None
    if is_vae:
        return Reconstructions(config.preview, networks, mesh, config.data.resolution)
    side = config.data.resolution // sizes.configs.vae.downscale
    return Preview(
        config.preview,
        networks,
        sizes.schedule,
        load_tokenizer(tokenizer_folder or TOKENIZER),
        mesh,
        kind=config.objective.kind,
        size=(side, side),
        subject_resolution=config.data.subject_resolution,
    )


def _precision(dtype: str) -> str | None:
    # On GPU and TPU float32 products are shortened unless told otherwise.
    return "float32" if as_dtype(dtype) == jnp.float32 else None
