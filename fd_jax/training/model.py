"""Networks, objective and optimizer of a run, laid over a mesh."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fd_jax import params, sharding
from fd_jax.checkpoints.run import manager
from fd_jax.checkpoints.run.manager import RunCheckpoints
from fd_jax.checkpoints.run.model_json import RunModel, write_model
from fd_jax.data.captions import MAX_TOKENS
from fd_jax.data.examples import Example
from fd_jax.errors import InputError
from fd_jax.networks import Networks, make_networks
from fd_jax.params import Flat
from fd_jax.training.config import TrainConfig
from fd_jax.training.flops import count_flops
from fd_jax.training.initialize import Sizes, given, initial_params
from fd_jax.training.objective import PARTS, Batch, Objective, to_inputs
from fd_jax.training.optimizer import make_optimizer, rates
from fd_jax.training.prefetch import place
from fd_jax.training.step import TrainState, init_state, make_eval_step, make_train_step

_EVALUATION = 0x5EED  # folded into the run's key: held-out draws are not those of a step


class Model:
    """Networks, their objective and their optimizer, laid over a mesh."""

    def __init__(self, config: TrainConfig, sizes: Sizes, networks: Networks, mesh: Mesh):
        self.config, self.sizes, self.networks, self.mesh = config, sizes, networks, mesh
        self.parts = PARTS[config.objective.kind]
        self.abstract = params.flat({part: getattr(networks, part).abstract for part in self.parts})
        self.factors = rates(config.optimizer, self.abstract)
        if config.objective.kind != "vae" and "vae" in given(config.init):
            self.factors = {p: f for p, f in self.factors.items() if not p.startswith("vae/")}
            if not self.factors:
                raise InputError(
                    f"optimizer.train is {config.optimizer.train}, by which nothing trains: "
                    f"{given(config.init)['vae']} gives the autoencoder, which stays as it is"
                )
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
        self, workdir: Path, checkpoints: RunCheckpoints
    ) -> tuple[TrainState, Flat, dict[str, Any] | None]:
        """Returns state, frozen parameters, and what the checkpoint says, if there is one."""
        config, dtype = self.config, self.networks.dtype
        keep_ema = config.optimizer.ema_decay is not None
        make = partial(init_state, optimizer=self.optimizer, keep_ema=keep_ema)
        trained = {path: self.abstract[path] for path in self.factors}
        shapes = jax.eval_shape(make, trained)
        targets = sharding.abstract_with_shardings(shapes, self.mesh)
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
            manager.save_frozen(workdir, frozen)
            model = RunModel(
                task=config.objective.kind,
                parts=self.parts,
                architecture=self.sizes.configs._asdict(),
                schedule=self.sizes.schedule,
            )
            write_model(workdir, model)
            layout = sharding.shardings(shapes, self.mesh)
            state = jax.jit(make, out_shardings=layout)({path: found[path] for path in trained})
            meta = None
        else:
            step, values, ema, meta = restored
            state = TrainState(ema_params=ema, **values)
            shapes = {path: self.abstract[path] for path in frozen_paths}
            frozen = manager.read_frozen(
                workdir, sharding.abstract_with_shardings(shapes, self.mesh)
            )
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
        batch = self.abstract_batch()
        draws = jax.eval_shape(objective.draw, jax.random.key(0), batch)

        def gradient(trained: Flat, frozen: Flat, batch: Batch, draws: Any) -> Flat:
            def loss(trained: Flat) -> jax.Array:
                model = params.nested(frozen | trained)
                return objective(model, to_inputs(batch.examples), draws)[0]

            return jax.grad(loss)(trained)

        return count_flops(gradient, state.params, frozen, batch, draws)

    def abstract_batch(self) -> Batch:
        """The shapes of a batch."""
        data, configs = self.config.data, self.sizes.configs

        def array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((data.batch_size, *shape), dtype)

        side, subjects, small = data.resolution, data.max_subjects, data.subject_resolution
        if data.latent_cache is None:
            seen = {"image": array(jnp.uint8, side, side, 3)}
        else:
            stored = jnp.uint16 if self.networks.dtype == jnp.bfloat16 else jnp.float32
            latent = side // configs.vae.downscale
            seen = {
                "image": None,
                "posterior": array(stored, latent, latent, 8),
                "text": array(stored, MAX_TOKENS, configs.text_encoder.hidden_size),
            }
        examples = Example(
            segment_map=array(jnp.uint8, side, side),
            subject_pixels=array(jnp.uint8, subjects, small, small, 3),
            subject_ids=array(jnp.uint8, subjects),
            input_ids=array(jnp.int32, MAX_TOKENS),
            subject_token_index=array(jnp.int32, subjects),
            has_subject=array(jnp.bool_, subjects),
            index=array(jnp.int32),
            **seen,
        )
        return Batch(examples, array(jnp.int32))
