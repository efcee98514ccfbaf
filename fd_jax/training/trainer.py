"""Training from a config, top to bottom: config, mesh, loader, state, step, loop."""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from fd_jax import params, sharding
from fd_jax.checkpoints.merge import find_tokenizer
from fd_jax.checkpoints.run import manager
from fd_jax.checkpoints.run.manager import RunCheckpoints
from fd_jax.checkpoints.run.model_json import RunModel, write_model
from fd_jax.compilation import compiler_options
from fd_jax.data.captions import load_tokenizer
from fd_jax.data.config import DataConfig
from fd_jax.data.examples import Example
from fd_jax.data.ffhq.source import open_source
from fd_jax.data.loader import Loader, epoch_indices, fingerprint, held_out
from fd_jax.errors import InputError
from fd_jax.files import check_folder
from fd_jax.numerics import pinned, seed_key
from fd_jax.params import Flat
from fd_jax.training import latent_cache, metrics
from fd_jax.training.config import LoopConfig, TrainConfig
from fd_jax.training.flops import count_step_flops
from fd_jax.training.initial_weights import initial_params, open_sources
from fd_jax.training.learner import Learner, make_learner, model_task
from fd_jax.training.loop import Loop
from fd_jax.training.optimizer import learning_rate
from fd_jax.training.prefetch import DevicePrefetcher, to_batch
from fd_jax.training.run_config import check_resumable, write_config
from fd_jax.training.run_lock import RunLock
from fd_jax.training.step import TrainState, init_state, make_eval_step, make_train_step
from fd_jax.training.tasks.base import Task

_EVALUATION = 0x5EED  # folded into the run's key, so that held-out draws are not those of a step


def train(config: TrainConfig, workdir: Path) -> int | None:
    """Trains from the start, or resumes the run in a folder.

    Args:
        config: Config of the run.
        workdir: Folder of the run.

    Returns:
        Number of the signal that stopped the run before its last step, or None.

    Raises:
        InputError: Config, data, a checkpoint or the folder cannot be used, or another run trains
            in the folder.
        NonFiniteError: The loss is not finite.
    """
    check_folder(workdir)
    with pinned(config.compute.dtype), RunLock(workdir) as lock:
        return _train(config, workdir, lock)


def _train(config: TrainConfig, workdir: Path, lock: RunLock) -> int | None:
    # Config: everything that can be checked before anything is computed.
    mesh = sharding.make_mesh(fsdp=config.mesh.fsdp)
    check_batch_size(config.data.batch_size, config.compute.accumulation, mesh)
    metrics.check_packages(config.log, workdir)
    sources = open_sources(config.init)
    learner = make_learner(config, sources)
    task = learner.task
    tokenizer_folder = find_tokenizer(sources)
    source = open_source(config.data.root, config.data.split)
    data_fingerprint = fingerprint(source, epoch_indices(source, config.data).tolist())
    is_resumed = check_resumable(workdir, config, data_fingerprint)

    preview = None
    if config.loop.preview_every:
        preview = task.preview(config, load_tokenizer(tokenizer_folder), mesh)
    held_out_batches = read_held_out(config.data, config.loop, tokenizer_folder)
    latent_cache.check(config.data.latent_cache, learner.factors, needs_images=task.needs_images)

    checkpoints = RunCheckpoints(
        workdir,
        keep_latest=config.loop.keep_latest,
        keep_every=config.loop.keep_every,
    )
    with checkpoints:
        # State: restored from the newest checkpoint, or initialized.
        make_state = partial(
            init_state,
            optimizer=learner.optimizer,
            keep_ema=config.optimizer.ema_decay is not None,
        )
        state_shapes = jax.eval_shape(make_state, learner.trained)
        restored = restore_state(workdir, checkpoints, state_shapes, learner.frozen, mesh)
        if restored is None:
            initial, origins = initial_params(
                sources,
                task.networks,
                task.parts,
                mesh,
                seed=config.loop.seed,
                from_scratch=config.model is not None,
            )
            report_origins(origins)
            frozen = {path: initial[path] for path in learner.frozen}
            manager.save_frozen(workdir, frozen)
            write_model(
                workdir,
                RunModel(
                    task=config.task,
                    parts=task.parts,
                    architecture=task.architecture._asdict(),
                    schedule=task.schedule,
                ),
            )
            state_shardings = sharding.shardings(state_shapes, mesh)
            make_sharded_state = jax.jit(make_state, out_shardings=state_shardings)
            state = make_sharded_state({path: initial[path] for path in learner.trained})
            meta = {}
        else:
            state, frozen, meta = restored
        # Kept in the dtype of computation: nothing is ever added to frozen parameters.
        frozen = jax.jit(partial(params.cast, dtype=task.networks.dtype))(frozen)
        if not is_resumed and jax.process_index() == 0:
            write_config(workdir, config, data_fingerprint)

        # Loader.
        cache = None
        if config.data.latent_cache is not None:
            tokenizer = load_tokenizer(tokenizer_folder)
            cache = latent_cache.build(config.data, source, tokenizer, task.networks, frozen)
        loader = Loader(
            config.data,
            tokenizer_folder,
            config.loop.seed,
            position=meta.get("position", 0),
            source=source,
            latent_cache=cache,
        )

        # Step and loop.
        train_step = jit_train_step(learner, state, mesh, config)
        step_flops = count_step_flops(model_task(task), state, frozen, config.data)
        evaluate = None
        if held_out_batches:
            evaluate = make_evaluate(task, held_out_batches, mesh, config.loop.seed)
        batches = DevicePrefetcher(loader, mesh)
        try:
            loop = Loop(
                config,
                workdir,
                mesh,
                state=state,
                frozen=frozen,
                train_step=train_step,
                batches=batches,
                checkpoints=checkpoints,
                lock=lock,
                item_ids=loader.ids,
                learning_rate=learning_rate(config.optimizer, config.loop.num_steps),
                step_flops=step_flops,
                evaluate=evaluate,
                preview=preview,
                held_out=meta.get("held_out", {}),
                restarts=meta.get("restarts", 0) + 1 if meta else 0,
            )
            return loop.run()
        finally:
            batches.close()


def check_batch_size(batch_size: int, accumulation: int, mesh: Mesh) -> None:
    """Raises InputError unless the devices share every part of a batch evenly."""
    parts = mesh.size * accumulation
    if batch_size % parts:
        raise InputError(
            f"data.batch_size is {batch_size}, expected a multiple of {parts}: {mesh.size} devices "
            f"times {accumulation}, compute.accumulation"
        )


def restore_state(
    workdir: Path,
    checkpoints: RunCheckpoints,
    state_shapes: TrainState,
    frozen_shapes: Flat,
    mesh: Mesh,
) -> tuple[TrainState, Flat, dict] | None:
    """Restores state, frozen parameters and metadata of the newest checkpoint; None before one."""
    targets = sharding.abstract_with_shardings(state_shapes, mesh)
    train_targets = {name: getattr(targets, name) for name in ("step", "params", "opt_state")}
    restored = checkpoints.restore(train_targets, targets.ema_params)
    if restored is None:
        return None
    step, values, ema, meta = restored
    frozen_targets = sharding.abstract_with_shardings(frozen_shapes, mesh)
    frozen = manager.read_frozen(workdir, frozen_targets)
    if jax.process_index() == 0:
        print(f"resumes after step {step}")
    return TrainState(ema_params=ema, **values), frozen, meta


def report_origins(origins: dict[str, str]) -> None:
    """Prints where the parameters of each part come from, by the first process."""
    if jax.process_index() == 0:
        for part, origin in origins.items():
            print(f"{part} is initialized from {origin}")


def jit_train_step(
    learner: Learner, state: TrainState, mesh: Mesh, config: TrainConfig
) -> Callable[..., tuple]:
    """Returns the jitted step. It donates the state that it is given."""
    step = make_train_step(
        learner.task,
        learner.optimizer,
        mesh,
        ema_decay=config.optimizer.ema_decay,
        accumulation=config.compute.accumulation,
    )
    out_shardings = (sharding.shardings(state, mesh), sharding.replicated(mesh))
    options = compiler_options(mesh, learner.task.networks.dtype, has_gradients=True)
    return jax.jit(step, donate_argnums=0, out_shardings=out_shardings, compiler_options=options)


def make_evaluate(
    task: Task, batches: Sequence[Example], mesh: Mesh, seed: int
) -> Callable[[Flat, Flat], dict[str, float]]:
    """Builds a function of trained and frozen parameters: mean losses of held-out batches."""
    eval_step = jax.jit(
        make_eval_step(task, mesh),
        out_shardings=sharding.replicated(mesh),
        compiler_options=compiler_options(mesh, task.networks.dtype),
    )
    key = jax.random.fold_in(seed_key(seed), _EVALUATION)

    def evaluate(trained: Flat, frozen: Flat) -> dict[str, float]:
        rows = [
            eval_step(trained, frozen, to_batch(batch, mesh), jax.random.fold_in(key, i))
            for i, batch in enumerate(batches)
        ]
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}

    return evaluate


def read_held_out(data: DataConfig, loop: LoopConfig, tokenizer_folder: Path) -> list[Example]:
    """Returns the first batches of the test split, if they are to be evaluated."""
    if not loop.eval_every:
        return []
    batches = held_out(data, tokenizer_folder, seed=loop.seed)
    kept = list(itertools.islice(batches, loop.eval_batches))
    if not kept and jax.process_index() == 0:
        print("the data has no test list: no held-out loss is computed")
    return kept
