"""The three stages as a table: which networks, contexts and blending each evaluation uses."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float32, Int32

from fd_jax.config import Config, Range
from fd_jax.errors import InputError
from fd_jax.sampling.noise_fusion import Smoothing
from fd_jax.sampling.solvers import SolverRows, make_solver_rows
from fd_jax.schedule import ScheduleConfig

Solver = Literal["ddim", "pndm", "dpmsolver++", "lcm"]
Mode = Literal["snf", "weighted", "delayed", "tdm", "sdm"]

_FLOAT32_MAX = float(np.finfo(np.float32).max)

SCENE, FUSION, SUBJECT = range(3)
STAGE_NAMES = ("scene", "fusion", "subject")

NULL, TEXT, AUGMENTED = range(3)  # the contexts: negative prompt, prompt, prompt with subjects


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplerConfig(Config):
    """Sampling in three stages: scene by the TDM, fusion of both models, subject by the SDM."""

    num_steps: Annotated[int, Range(1)] = 50
    """Number of solver steps."""
    alpha: float = 0.3
    """Share of the steps after which the fusion stage begins."""
    beta: float = 0.6
    """Share of the steps after which the subject stage begins."""
    fusion_start: int | None = None
    """First evaluation of the fusion stage, in place of alpha. The released code's
    start_merge_step + 1."""
    fusion_end: int | None = None
    """First evaluation of the subject stage, in place of beta. The released code's
    final_step + 1."""
    guidance_scale: Annotated[float, Range(0, _FLOAT32_MAX)] = 5.0
    """Scale of classifier-free guidance; 1 means none."""
    solver: Solver = "ddim"
    """ddim; pndm as in the released code; dpmsolver++, which needs about 20 steps; lcm for models
    with an LCM-LoRA, 4 to 8 steps at a guidance scale of 1 to 2."""
    mode: Mode = "snf"
    """Division of the evaluations between the models. snf: the three stages with saliency-adaptive
    noise fusion. For comparison, weighted: a fixed weighted sum in the fusion stage; delayed: the
    SDM alone, subjects added after alpha, as in FastComposer; tdm or sdm: one model alone."""
    sdm_weight: Annotated[float, Range(0, 1)] = 0.5
    """Weight of the SDM's noise in mode weighted."""
    smoothing: Smoothing = "box"
    """Smoothing of the saliency: the released code's 4x4 box, or a 3x3 gaussian."""
    tdm_cache_interval: Annotated[int, Range(1)] = 1
    """Evaluations of the TDM between two of its whole UNet; those between reuse its deep features
    (DeepCache). 1 reuses none, 2 takes about half of the arithmetic."""
    sdm_cache_interval: Annotated[int, Range(1)] = 1
    """The same of the SDM."""

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.alpha <= self.beta <= 1:
            raise InputError(
                f"alpha is {self.alpha} and beta is {self.beta}, expected 0 <= alpha <= beta <= 1"
            )


class Steps(NamedTuple):
    """One row per UNet evaluation, noisiest first. Inside the scan the leading axis is gone.

    In a table of `join_steps`, all columns but the solver's and those of the models that are
    evaluated, and how, have an axis of images at the end.
    """

    solver: SolverRows
    stage: Int32[Array | np.ndarray, "*n"]  # SCENE, FUSION or SUBJECT
    use_tdm: Bool[Array | np.ndarray, "*n"]  # whether the TDM is evaluated
    use_sdm: Bool[Array | np.ndarray, "*n"]
    reuse_tdm: Bool[Array | np.ndarray, "*n"]  # whether its last deep features are reused
    reuse_sdm: Bool[Array | np.ndarray, "*n"]
    sdm_uncond: Int32[Array | np.ndarray, "*n"]  # index of the context to guide away from
    sdm_cond: Int32[Array | np.ndarray, "*n"]  # index of the context to guide towards
    use_snf: Bool[Array | np.ndarray, "*n"]  # whether saliency, not a weight, blends the noises
    sdm_weight: Float32[Array | np.ndarray, "*n"]  # the weight otherwise

    @property
    def num_evaluations(self) -> int:
        """Number of UNet evaluations per image: two per model and row, for guidance."""
        return 2 * int(np.sum(self.use_tdm) + np.sum(self.use_sdm))

    @property
    def reuses_features(self) -> bool:
        """Whether any evaluation reuses deep features."""
        return bool(np.any(self.reuse_tdm) or np.any(self.reuse_sdm))


def make_steps(config: SamplerConfig, schedule: ScheduleConfig) -> Steps:
    """Builds the table on the host. Raises InputError if solver and schedule do not fit."""
    solver = make_solver_rows(config.solver, schedule, config.num_steps)
    stage = _stages(config, solver)
    n = len(stage)
    everywhere, nowhere = np.ones(n, bool), np.zeros(n, bool)
    use_tdm, use_sdm = {
        "snf": (stage <= FUSION, stage >= FUSION),
        "weighted": (stage <= FUSION, stage >= FUSION),
        "delayed": (nowhere, everywhere),
        "tdm": (everywhere, nowhere),
        "sdm": (nowhere, everywhere),
    }[config.mode]
    uncond, cond = np.full(n, TEXT, np.int32), np.full(n, AUGMENTED, np.int32)
    if config.mode == "delayed":
        uncond, cond = np.full(n, NULL, np.int32), np.where(stage == SCENE, TEXT, AUGMENTED)
    both = use_tdm & use_sdm
    return Steps(
        solver,
        stage.astype(np.int32),
        use_tdm,
        use_sdm,
        _reuse(use_tdm, everywhere, config.tdm_cache_interval),  # always of one context
        _reuse(use_sdm, cond, config.sdm_cache_interval),
        uncond,
        cond.astype(np.int32),
        both & (config.mode == "snf"),
        np.where(both, config.sdm_weight, use_sdm).astype(np.float32),
    )


def _stages(config: SamplerConfig, solver: SolverRows) -> np.ndarray:
    """Returns the stage of each evaluation.

    alpha and beta count steps, so that an evaluation that a solver repeats does not move the
    borders: 0.3 and 0.6 of PNDM's 50 steps are the 15 and 30 that the released code ships with.
    """
    evaluations = len(solver.t)
    borders = []
    for name, border, share in (
        ("fusion_start", config.fusion_start, config.alpha),
        ("fusion_end", config.fusion_end, config.beta),
    ):
        if border is None:
            # Half up: Python's round would take 2.5 to 2 and 3.5 to 4.
            first = math.floor(share * config.num_steps + 0.5)
            border = int(np.searchsorted(solver.step_index, first))
        elif not 0 <= border <= evaluations:
            raise InputError(f"{name} is {border}, expected 0..{evaluations}, the evaluations")
        borders.append(border)
    start, end = borders
    if start > end:
        raise InputError(
            f"the fusion stage would begin at evaluation {start} and end before {end}, expected "
            "fusion_start <= fusion_end"
        )
    order = np.arange(evaluations)
    return np.where(order < start, SCENE, np.where(order < end, FUSION, SUBJECT))


def _reuse(use: np.ndarray, context: np.ndarray, interval: int) -> np.ndarray:
    """Returns which evaluations of a model reuse the deep features of one before.

    The first one does not, nor does the first one of another context.
    """
    reuse = np.zeros(len(use), bool)
    used = np.flatnonzero(use)
    age = 0
    for before, i in itertools.pairwise(used):
        age = age + 1 if context[i] == context[before] else 0
        reuse[i] = age % interval != 0
    return reuse


def join_steps(tables: Sequence[Steps]) -> Steps:
    """Returns one table for a batch whose images have a table each.

    A model is evaluated where an image needs it. Stages, contexts and blending become columns of
    one entry per image, [n, b], so that each image is made as by its own table.

    Raises:
        InputError: Their solvers, the numbers of their steps, or the evaluations at which they
            reuse deep features, differ.
    """
    first = tables[0].solver
    for table in tables[1:]:
        if not all(map(np.array_equal, table.solver, first)):
            raise InputError(
                "images of one batch differ in their solver or number of steps, expected the same"
            )
    each: dict[str, Any] = {
        name: np.stack([getattr(table, name) for table in tables], axis=1)
        for name in Steps._fields
        if name != "solver"
    }
    for model in ("tdm", "sdm"):
        use, reuse = each[f"use_{model}"], each[f"reuse_{model}"]
        each[f"use_{model}"], each[f"reuse_{model}"] = use.any(axis=1), reuse.any(axis=1)
        if (use & (reuse != reuse.any(axis=1, keepdims=True))).any():
            raise InputError(
                f"images of one batch reuse deep features of the {model.upper()} at different "
                f"evaluations, expected the same ({model}_cache_interval, alpha and beta)"
            )
    return Steps(solver=first, **each)


def pad_steps(steps: Steps, length: int) -> Steps:
    """Appends rows that evaluate no UNet and leave the latents unchanged."""
    missing = length - len(steps.stage)

    def pad(column: np.ndarray, value: int = 0) -> np.ndarray:
        widths = [(0, missing)] + [(0, 0)] * (column.ndim - 1)
        return np.pad(column, widths, constant_values=value)

    solver = steps.solver
    kept = {name: pad(getattr(solver, name), 1) for name in ("alpha", "base_weight")}
    rest = {name: pad(getattr(solver, name)) for name in solver._fields if name not in kept}
    columns = {name: pad(getattr(steps, name)) for name in steps._fields if name != "solver"}
    return Steps(solver=SolverRows(**kept, **rest), **columns)
