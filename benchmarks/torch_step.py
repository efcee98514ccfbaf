"""The training step of the TDM and the SDM in PyTorch, of the models that diffusers has."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from benchmarks.peers import Fusion, nchw, torch_model
from fd_jax.architecture import Architecture
from fd_jax.checkpoints.config_json import config_to_json
from fd_jax.checkpoints.torch.names import (
    IMAGE_ENCODER,
    SUBJECT_FUSION,
    TEXT_ENCODER,
    UNET,
    VAE,
    Part,
)
from fd_jax.conditioning.clip_vision import MEAN, STD
from fd_jax.schedule import ScheduleConfig, alphas_cumprod
from fd_jax.training.config import TrainConfig
from fd_jax.training.tasks.base import Draws, Inputs


class KeepsMap(AttnProcessor2_0):
    """Attention that leaves its probabilities in `maps`."""

    def __init__(self, maps: dict[str, Tensor], name: str):
        super().__init__()
        self.maps, self.name = maps, name

    def __call__(self, attn: Attention, x: Tensor, encoder_hidden_states: Tensor, **_) -> Tensor:
        context = encoder_hidden_states
        q, k, v = (
            attn.head_to_batch_dim(to(y))
            for to, y in ((attn.to_q, x), (attn.to_k, context), (attn.to_v, context))
        )
        probs = attn.get_attention_scores(q, k)
        self.maps[self.name] = probs
        return attn.to_out[0](attn.batch_to_head_dim(torch.bmm(probs, v)))


class Trainer:
    """Models, optimizer and step.

    Args:
        configs: Sizes.
        params: fd_jax's parameters by part.
        config: The task and its objective.
        device: Where.
        autocast: Whether to compute in bfloat16, by autocast.
        checkpointing: Whether blocks of the UNet are computed again on the way back.
        compiled: Whether the UNet is compiled.
    """

    def __init__(
        self,
        configs: Architecture,
        params: dict,
        config: TrainConfig,
        *,
        device: str,
        autocast: bool,
        checkpointing: bool,
        compiled: bool,
    ):
        self.objective, self.device, self.autocast = config.objective, device, autocast
        self.has_subjects = config.task == "sdm"
        self.maps: dict[str, Tensor] = {}
        self.alpha_bar = torch.from_numpy(alphas_cumprod(ScheduleConfig())).float().to(device)

        def model(cls: type, config: Any, part: str, names: dict) -> nn.Module:
            return torch_model(cls, config, params[part], Part(names), device)

        self.vae = model(AutoencoderKL, config_to_json(configs.vae), "vae", VAE)
        text = CLIPTextConfig(**config_to_json(configs.text_encoder))
        self.text = model(CLIPTextModel, text, "text_encoder", TEXT_ENCODER)
        self.unet = model(UNet2DConditionModel, config_to_json(configs.unet), "unet", UNET)
        trained = [self.unet]
        if self.has_subjects:
            vision = CLIPVisionConfig(**config_to_json(configs.image_encoder))
            self.vision = model(
                CLIPVisionModelWithProjection, vision, "image_encoder", IMAGE_ENCODER
            )
            width = configs.text_encoder.hidden_size
            self.fusion = model(Fusion, width, "subject_fusion", SUBJECT_FUSION)
            trained += [self.fusion, *self.vision.vision_model.encoder.layers[-2:]]
            self._keep_maps()
        if device == "cuda":
            for network in (self.vae, self.unet):
                network.to(memory_format=torch.channels_last)
        self.trained = [p.requires_grad_() for module in trained for p in module.parameters()]
        self.unet.train()
        if checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.predict = torch.compile(self.unet, dynamic=False) if compiled else self.unet
        self.optimizer = torch.optim.AdamW(
            self.trained, lr=1e-5, weight_decay=1e-2, fused=device == "cuda"
        )

    def _keep_maps(self) -> None:
        processors = dict(self.unet.attn_processors)
        for name in processors:
            level = name.split(".attentions")[0]
            if ".attn2." in name and level in self.objective.localization_levels:
                processors[name] = KeepsMap(self.maps, name)
        self.unet.set_attn_processor(processors)

    def place(self, inputs: Inputs) -> dict[str, Tensor]:
        """A batch as PyTorch has it."""
        if inputs.image is not None:
            found = {
                "image": nchw(np.asarray(inputs.image)),
                "ids": torch.from_numpy(np.array(inputs.input_ids)).long(),
            }
        else:
            posterior, text = (np.asarray(x, np.float32) for x in (inputs.posterior, inputs.text))
            found = {"posterior": nchw(posterior), "text": torch.from_numpy(text)}
        if self.has_subjects:
            found |= self._subjects(inputs)
        return {name: value.to(self.device) for name, value in found.items()}

    def _subjects(self, inputs: Inputs) -> dict[str, Tensor]:
        pixels = np.asarray(inputs.subject_pixels)
        pixels = (pixels - np.float32(MEAN)) / np.float32(STD)
        masks = torch.from_numpy(np.array(inputs.subject_masks))
        present = torch.from_numpy(np.array(inputs.has_subject))
        # The noise loss's mask: the union; everything where there is no subject.
        size = masks.shape[-1] // 2 ** (len(self.vae.config.block_out_channels) - 1)
        union = masks.amax(dim=1, keepdim=True)
        union = F.interpolate(union, size=(size, size), mode="bilinear", align_corners=False)
        absent = ~present.any(dim=1)[:, None, None, None]
        return {
            "pixels": nchw(pixels.reshape(-1, *pixels.shape[2:])),
            "masks": masks,
            "union": torch.where(absent, 1.0, union),
            "index": torch.from_numpy(np.array(inputs.subject_token_index)).long(),
            "present": present,
        }

    def step(self, batch: dict[str, Tensor], draws: Draws) -> dict[str, float]:
        """Takes a step and returns losses and the norm of the gradient."""
        with self._precision():
            losses = self.losses(batch, draws)
        losses["loss"].backward()
        norm = nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.maps.clear()
        return {name: float(x) for name, x in (losses | {"gradient_norm": norm}).items()}

    @contextlib.contextmanager
    def _precision(self) -> Iterator[None]:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
            yield

    def losses(self, batch: dict[str, Tensor], draws: Draws) -> dict[str, Tensor]:
        t = torch.from_numpy(np.array(draws.t)).long().to(self.device)
        noise, posterior = (
            nchw(np.asarray(x)).to(self.device) for x in (draws.noise, draws.posterior_noise)
        )
        with torch.no_grad():
            if "image" in batch:
                where = self.vae.encode(batch["image"]).latent_dist
                context = self.text(batch["ids"])[0]
            else:
                where = DiagonalGaussianDistribution(batch["posterior"])
                context = batch["text"]
            latents = (where.mean.float() + where.std.float() * posterior) * (
                self.vae.config.scaling_factor
            )
        level = self.alpha_bar[t][:, None, None, None]
        x = level.sqrt() * latents + (1 - level).sqrt() * noise
        if not self.has_subjects:
            loss = F.mse_loss(self.predict(x, t, context).sample.float(), noise)
            return {"loss": loss, "denoising_loss": loss}
        subjects = self.vision(pixel_values=batch["pixels"]).image_embeds
        subjects = subjects.unflatten(0, batch["index"].shape)
        rows, places = batch["present"].nonzero(as_tuple=True)
        where = rows, batch["index"][rows, places]
        words = self.fusion(context[where], subjects[rows, places])
        context = context.index_put(where, words.to(context.dtype))
        eps = self.predict(x, t, context).sample.float()
        mask = batch["union"] if bool(draws.use_mask) else 1.0
        denoising = F.mse_loss(mask * eps, mask * noise)
        localization = self.localization(batch)
        return {
            "loss": denoising + self.objective.localization_weight * localization,
            "denoising_loss": denoising,
            "localization_loss": localization,
        }

    def localization(self, batch: dict[str, Tensor]) -> Tensor:
        """Attention to a subject's word outside of the subject, less that inside."""
        masks, index, present = batch["masks"], batch["index"], batch["present"].float()
        layers = []
        for probs in self.maps.values():
            side = math.isqrt(probs.shape[1])
            probs = probs.float().unflatten(0, (len(masks), -1))  # b heads q tokens
            inside = F.interpolate(masks, size=(side, side), mode="bilinear", antialias=True)
            inside = inside.flatten(2).transpose(1, 2)[:, None]  # b 1 q subjects
            where = index[:, None, None, :].expand(*probs.shape[:3], -1)
            chosen = probs.gather(3, where)
            within = (chosen * inside).sum(2) / (inside.sum(2) + 1e-5)
            outside = (chosen * (1 - inside)).sum(2) / ((1 - inside).sum(2) + 1e-5)
            difference = ((outside - within) * present[:, None]).sum(2)
            layers.append((difference / (present.sum(1)[:, None] + 1e-5)).mean())
        return torch.stack(layers).mean()
