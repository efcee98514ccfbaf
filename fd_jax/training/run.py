"""A training run, put together: config to data, networks, state and loop."""

import dataclasses
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fd_jax import ops, params, runtime, sharding
from fd_jax.checkpoints import store
from fd_jax.checkpoints.folders import read_json, write_json
from fd_jax.checkpoints.run_model import RunModel, write_model
from fd_jax.checkpoints.store import Store
from fd_jax.data.captions import MAX_TOKENS, load_tokenizer
from fd_jax.data.examples import Example
from fd_jax.data.loader import BUNDLED_TOKENIZER, DataConfig, Loader, held_out
from fd_jax.errors import InputError
from fd_jax.networks import Networks, make_networks
from fd_jax.params import Flat
from fd_jax.pictures import check_folder
from fd_jax.settings import to_json
from fd_jax.training import metrics
from fd_jax.training.config import TrainConfig, check_same
from fd_jax.training.feed import Feed, place
from fd_jax.training.flops import count_flops
from fd_jax.training.initialize import Sizes, given, initial_params, read_sizes
from fd_jax.training.loop import Loop, Tools
from fd_jax.training.objective import PARTS, Batch, Objective, check_levels, to_inputs
from fd_jax.training.optimizer import learning_rate, make_optimizer, rates
from fd_jax.training.preview import Preview
from fd_jax.training.step import TrainState, init_state, make_eval_step, make_train_step

CONFIG_FILE = "config.json"
_EVALUATION = 0x5EED  # folded into the run's key: held-out draws are not those of a step


def train(config: TrainConfig, workdir: Path) -> int | None:
    """Trains, from the start or from where the run in `workdir` was stopped.

    Returns:
        The number of the signal that stopped it before its last step, if one did.

    Raises:
        InputError: Settings, data, a checkpoint or the folder cannot be used.
        NonFiniteError: The loss is not finite.
    """
    mesh = sharding.make_mesh(fsdp=config.mesh.fsdp)
    _check(config, mesh)
    check_folder(workdir)
    sizes = _sizes(config)
    tokenizer_folder = config.init.base and config.init.base / "tokenizer"
    loader = Loader(config.data, tokenizer_folder, config.loop.seed)
    stored = _stored(workdir, config, loader)
    compute = config.compute
    networks = make_networks(
        sizes.configs, dtype=compute.dtype, attention=compute.attention, remat=compute.remat
    )
    preview = _preview(config, networks, sizes, mesh, tokenizer_folder)
    evaluation = _held_out(config, tokenizer_folder)
    loop = config.loop
    folder = Store(
        workdir,
        save_every=loop.checkpoint_every,
        keep_latest=loop.keep_latest,
        keep_every=loop.keep_every,
    )
    with folder as checkpoints, jax.default_matmul_precision(_precision(compute.dtype)):
        model = Model(config, sizes, networks, mesh)
        state, frozen, meta = model.begin(workdir, checkpoints)
        if not stored and jax.process_index() == 0:
            _write_stored(workdir, config, loader)
        if meta is not None:
            loader.close()
            loader = Loader(
                config.data, tokenizer_folder, config.loop.seed, position=meta["position"]
            )
        feed = Feed(loader, mesh)
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


class Model:
    """Networks, their objective and their optimizer, laid over a mesh."""

    def __init__(self, config: TrainConfig, sizes: Sizes, networks: Networks, mesh: Mesh):
        self.config, self.sizes, self.networks, self.mesh = config, sizes, networks, mesh
        self.parts = PARTS[config.objective.kind]
        self.abstract = params.flat({part: getattr(networks, part).abstract for part in self.parts})
        self.factors = rates(config.optimizer, self.abstract)
        if "vae" in given(config.init):
            self.factors = {p: f for p, f in self.factors.items() if not p.startswith("vae/")}
        self.optimizer = make_optimizer(config.optimizer, self.factors, config.loop.num_steps)
        self.objective = self._objective(networks)

    def _objective(self, networks: Networks) -> Objective:
        return Objective(
            networks,
            self.config.objective,
            self.sizes.schedule,
            downscale=self.sizes.configs.vae.downscale,
            trains_vae=any(path.startswith("vae/") for path in self.factors),
        )

    def begin(
        self, workdir: Path, checkpoints: Store
    ) -> tuple[TrainState, Flat, dict[str, Any] | None]:
        """Returns state, frozen parameters, and what the checkpoint says, if there is one."""
        config, dtype = self.config, self.networks.dtype
        keep_ema = config.optimizer.ema_decay is not None
        make = partial(init_state, optimizer=self.optimizer, keep_ema=keep_ema)
        trained = {path: self.abstract[path] for path in self.factors}
        shapes = jax.eval_shape(make, trained)
        targets = sharding.targets(shapes, self.mesh)
        train = {name: getattr(targets, name) for name in ("step", "params", "opt_state")}
        restored = checkpoints.restore(train, targets.ema_params)
        frozen_paths = [path for path in self.abstract if path not in self.factors]
        if restored is None:
            found, origin = initial_params(
                config.init,
                self.networks,
                self.parts,
                self.mesh,
                seed=config.loop.seed,
                from_scratch=config.model is not None,
            )
            if jax.process_index() == 0:
                for part, source in origin.items():
                    print(f"{part} begins with {source}")
            frozen = {path: found[path] for path in frozen_paths}
            store.save_frozen(workdir, frozen)
            write_model(workdir, RunModel(config.objective.kind, *self.sizes))
            layout = sharding.shardings(shapes, self.mesh)
            state = jax.jit(make, out_shardings=layout)({path: found[path] for path in trained})
            meta = None
        else:
            step, values, ema, meta = restored
            state = TrainState(ema_params=ema, **values)
            shapes = {path: self.abstract[path] for path in frozen_paths}
            frozen = store.read_frozen(workdir, sharding.targets(shapes, self.mesh))
            if jax.process_index() == 0:
                print(f"goes on after step {step}")
        # Kept in the dtype of computation, as nothing is ever added to them.
        return state, jax.jit(partial(params.cast, dtype=dtype))(frozen), meta

    def train_step(self, state: TrainState) -> Callable[..., tuple]:
        """Returns the step, compiled on its first call. It destroys the state that it is given."""
        step = make_train_step(
            self.objective,
            self.optimizer,
            self.mesh,
            ema_decay=self.config.optimizer.ema_decay,
            accumulation=self.config.compute.accumulation,
        )
        layout = sharding.shardings(state, self.mesh)
        return jax.jit(
            step, donate_argnums=0, out_shardings=(layout, sharding.replicated(self.mesh))
        )

    def evaluate(self, batches: list[Example]) -> Callable[[Flat, Flat], dict[str, float]]:
        """Returns a function that gives the mean losses of held-out batches."""
        whole = sharding.replicated(self.mesh)
        measure = jax.jit(make_eval_step(self.objective, self.mesh), out_shardings=whole)
        key = jax.random.fold_in(jax.random.key(self.config.loop.seed), _EVALUATION)

        def evaluate(trained: Flat, frozen: Flat) -> dict[str, float]:
            rows = [
                measure(trained, frozen, place(batch, self.mesh), jax.random.fold_in(key, i))
                for i, batch in enumerate(batches)
            ]
            return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}

        return evaluate

    def flops(self, state: TrainState, frozen: Flat) -> int:
        """Returns the FLOPs of a step: of the model, not those of doing some of it twice."""
        networks = make_networks(self.sizes.configs, dtype=self.networks.dtype, attention="plain")
        objective = self._objective(networks)
        batch = _abstract_batch(self.config.data)
        draws = jax.eval_shape(objective.draw, jax.random.key(0), batch)

        def gradient(trained: Flat, frozen: Flat, batch: Batch, draws: Any) -> Flat:
            def loss(trained: Flat) -> jax.Array:
                model = params.nested(frozen | trained)
                return objective(model, to_inputs(batch.examples), draws)[0]

            return jax.grad(loss)(trained)

        return count_flops(gradient, state.params, frozen, batch, draws)


def _check(config: TrainConfig, mesh: Mesh) -> None:
    """Raises InputError on what can be known before anything is read."""
    parts = mesh.size * config.compute.accumulation
    if config.data.batch_size % parts:
        raise InputError(
            f"data.batch_size is {config.data.batch_size}, expected a multiple of {parts}: "
            f"{mesh.size} devices times {config.compute.accumulation}, compute.accumulation"
        )
    if config.objective.kind == "sdm" and config.data.max_subjects < 1:
        raise InputError("data.max_subjects is 0, expected at least 1 for an sdm")
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
    check_same(content["settings"], config, str(workdir))
    if content["data"] != loader.fingerprint:
        raise InputError(
            f"{workdir} holds a run on other data: {content['data']} there, {loader.fingerprint} "
            "here; expected the same items, or a new --workdir"
        )
    return True


def _write_stored(workdir: Path, config: TrainConfig, loader: Loader) -> None:
    content = {
        "settings": to_json(config),
        "data": loader.fingerprint,
        "versions": runtime.versions(),
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
) -> Preview | None:
    if not config.preview.prompts or not config.loop.preview_every:
        return None
    side = config.data.resolution // sizes.configs.vae.downscale
    return Preview(
        config.preview,
        networks,
        sizes.schedule,
        load_tokenizer(tokenizer_folder or BUNDLED_TOKENIZER),
        mesh,
        kind=config.objective.kind,
        size=(side, side),
        object_resolution=config.data.object_resolution,
    )


def _abstract_batch(data: DataConfig) -> Batch:
    """The shapes of a batch."""

    def array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((data.batch_size, *shape), dtype)

    side, subjects, small = data.resolution, data.max_subjects, data.object_resolution
    examples = Example(
        image=array(jnp.uint8, side, side, 3),
        segment_map=array(jnp.uint8, side, side),
        subject_pixels=array(jnp.uint8, subjects, small, small, 3),
        subject_ids=array(jnp.uint8, subjects),
        input_ids=array(jnp.int32, MAX_TOKENS),
        subject_token_index=array(jnp.int32, subjects),
        has_subject=array(jnp.bool_, subjects),
        index=array(jnp.int32),
    )
    return Batch(examples, array(jnp.int32))


def _precision(dtype: str) -> str | None:
    # On GPU and TPU float32 products are shortened unless told otherwise.
    return "float32" if ops.as_dtype(dtype) == jnp.float32 else None
