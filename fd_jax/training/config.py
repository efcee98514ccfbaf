"""The configuration of a training run."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fd_jax import distributed, sharding
from fd_jax.architecture import CLIPTextConfig, CLIPVisionConfig, UNetConfig, VAEConfig
from fd_jax.config import Config, Range
from fd_jax.data.config import DataConfig
from fd_jax.errors import InputError
from fd_jax.losses import denoising, localization
from fd_jax.ops.attention import AttentionKind
from fd_jax.ops.layers import Remat, as_dtype
from fd_jax.schedule import ScheduleConfig
from fd_jax.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(Config):
    """Terms of the loss, and their weights."""

    mask_probability: Annotated[float, Range(0, 1)] = 0.5
    """Probability that the denoising loss of a batch counts the subjects' pixels alone (sdm)."""
    absent: denoising.Absent = "whole"
    """Pixels that count, in such a batch, of a sample without subjects: whole, all of them;
    released, none, as in the released code."""
    localization_weight: Annotated[float, Range(0)] = 1e-3
    """Weight of the localization loss (sdm)."""
    localization_levels: tuple[str, ...] = localization.LEVELS
    """Levels of the UNet whose cross-attention enters the localization loss."""
    min_snr_gamma: Annotated[float, Range(above=0)] | None = None
    """Gamma of min-SNR weighting (arXiv:2303.09556), commonly 5; none by default."""
    timestep_scale: Annotated[float, Range(above=0)] | None = None
    """Scale of the Laplace density, around 0, of the log SNR of the timesteps that are drawn
    (arXiv:2407.03297: 0.5); by default timesteps are uniform. Held-out losses follow it too."""
    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    """Prediction of the UNet; by default that of the model it is initialized from, else epsilon."""
    reconstruction_weight: Annotated[float, Range(0)] = 1.0
    """Weight of the reconstruction loss, where the autoencoder trains."""
    divergence_weight: Annotated[float, Range(0)] = 1e-3
    """Weight of the latents' divergence from a standard normal, where the autoencoder trains."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """Architecture of networks that are trained from scratch."""

    unet: UNetConfig = dataclasses.field(default_factory=UNetConfig)
    vae: VAEConfig = dataclasses.field(default_factory=VAEConfig)
    text_encoder: CLIPTextConfig = dataclasses.field(default_factory=CLIPTextConfig)
    image_encoder: CLIPVisionConfig = dataclasses.field(default_factory=CLIPVisionConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitConfig(Config):
    """Checkpoints that parameters are initialized from. Parts that none has start at random."""

    base: Path | None = None
    """Stable Diffusion 1.5, a folder in the layout of diffusers."""
    image_encoder: Path | None = None
    """CLIP ViT-L/14, a folder in the layout of transformers (sdm)."""
    checkpoint: Path | None = None
    """An earlier run, or a file of the released layout. Its parts take precedence over those of
    base. An SDM may be initialized from a TDM, a TDM from a run of the autoencoder alone. TDM and
    SDM share the autoencoder, so one that is initialized from a checkpoint stays frozen, unless it
    trains alone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeConfig(Config):
    """Precision, memory and speed. The loss changes by rounding at most."""

    dtype: str = "bfloat16"
    """Dtype of the computation, bfloat16 or float32. Parameters and optimizer are float32."""
    attention: AttentionKind = "auto"
    """Implementation of attention; auto picks one for the device."""
    remat: Remat = "none"
    """Activations that are rematerialized in the backward pass: none, all but the results of matrix
    products (dots), or those of whole blocks (blocks)."""
    accumulation: Annotated[int, Range(1)] = 1
    """Number of parts of a batch whose gradients are computed one after another and averaged."""

    def __post_init__(self):
        super().__post_init__()
        as_dtype(self.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig(Config):
    """Length of the run, and the intervals of checkpoints, evaluation and previews."""

    num_steps: Annotated[int, Range(1)] = 150_000
    """Total number of steps, including those before a resume."""
    seed: Annotated[int, Range(0, 2**32 - 1)] = 42
    """Seed of initial parameters, data order, augmentation and noise."""
    checkpoint_every: Annotated[int, Range(1)] = 1000
    """Steps between checkpoints. The last step and SIGTERM also save one."""
    keep_latest: Annotated[int, Range(1)] = 2
    """Number of latest checkpoints to keep, besides the best one."""
    keep_every: Annotated[int, Range(1)] | None = None
    """Keep the checkpoints of all multiples of this step."""
    log_every: Annotated[int, Range(1)] = 10
    """Steps whose metrics are averaged into one line of the log."""
    eval_every: Annotated[int, Range(0)] = 1000
    """Steps between evaluations of the loss on held-out images; 0 for none."""
    eval_batches: Annotated[int, Range(1)] = 8
    """Number of held-out batches."""
    preview_every: Annotated[int, Range(0)] = 1000
    """Steps between sheets of preview images; 0 for none."""
    profile: tuple[int, int] | None = None
    """First and last step of a profiler trace, written to WORKDIR/profile for TensorBoard."""

    def __post_init__(self):
        super().__post_init__()
        if self.profile is not None and not 1 <= self.profile[0] <= self.profile[1]:
            raise InputError(f"profile is {self.profile}, expected 1 <= first <= last step")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogConfig(Config):
    """Destinations of metrics besides WORKDIR/metrics.jsonl."""

    tensorboard: bool = False
    """Write to WORKDIR/tensorboard; needs the package tensorboardX."""
    wandb: str | None = None
    """Project of Weights & Biases; needs the package wandb."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreviewConfig(Config):
    """Images that are made at intervals, always from the same noise."""

    prompts: tuple[str, ...] = ()
    """Prompts, with markers for an sdm and without for a tdm; none for a vae."""
    references: tuple[Path, ...] = ()
    """Photographs for the markers of all prompts, in order (sdm), or to be reconstructed (vae)."""
    num_steps: Annotated[int, Range(1)] = 25
    """Steps of DPM-Solver++."""
    guidance_scale: Annotated[float, Range(0)] = 5.0
    """Scale of classifier-free guidance."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """A training run."""

    task: str = "sdm"
    """tdm: scenes, from captions alone. sdm: persons, whose photographs augment the caption. vae:
    the autoencoder alone, for a TDM and an SDM to share."""
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    model: Annotated[ModelConfig | None, tyro.conf.AvoidSubcommands] = None
    """Architecture to train from scratch; by default that of the checkpoints in `init`."""
    init: InitConfig = dataclasses.field(default_factory=InitConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    compute: ComputeConfig = dataclasses.field(default_factory=ComputeConfig)
    mesh: sharding.MeshConfig = dataclasses.field(default_factory=sharding.MeshConfig)
    loop: LoopConfig = dataclasses.field(default_factory=LoopConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
    preview: PreviewConfig = dataclasses.field(default_factory=PreviewConfig)
    processes: distributed.Processes = dataclasses.field(default_factory=distributed.Processes)
