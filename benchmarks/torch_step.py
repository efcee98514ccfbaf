"""The training step of the TDM and the SDM in PyTorch, of the models that diffusers has."""

import contextlib
import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from benchmarks.peers import nchw, torch_model
from fd_jax.checkpoints.torch_weights import (
    IMAGE_ENCODER,
    SUBJECT_FUSION,
    TEXT_ENCODER,
    UNET,
    VAE,
    Part,
)
from fd_jax.conditioning.clip_vision import MEAN, STD
from fd_jax.config import Configs
from fd_jax.schedule import ScheduleConfig, alphas_cumprod
from fd_jax.training.objective import Draws, Inputs, ObjectiveConfig


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


class FusionMLP(nn.Module):
    def __init__(self, in_dim: int, dim: int):
        super().__init__()
        self.layernorm = nn.LayerNorm(in_dim)
        self.fc1, self.fc2 = nn.Linear(in_dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(self.layernorm(x))))


class Fusion(nn.Module):
    """Writes subjects into the words of a prompt."""

    def __init__(self, dim: int):
        super().__init__()
        self.mlp1, self.mlp2 = FusionMLP(2 * dim, dim), FusionMLP(dim, dim)
        self.layer_norm = nn.LayerNorm(dim)

    def forward(self, text: Tensor, subjects: Tensor, index: Tensor, present: Tensor) -> Tensor:
        rows, places = present.nonzero(as_tuple=True)
        where = rows, index[rows, places]
        psi = text[where]
        h = self.mlp1(torch.cat([psi, subjects[rows, places]], dim=-1)) + psi
        h = self.layer_norm(self.mlp2(h) + h)
        return text.index_put(where, h.to(text.dtype))


class Trainer:
    """Models, optimizer and step.

    Args:
        configs: Sizes.
        params: fd_jax's parameters by part.
        config: What is learnt.
        device: Where.
        autocast: Whether to compute in bfloat16, by autocast.
        checkpointing: Whether blocks of the UNet are computed again on the way back.
    """

    def __init__(
        self,
        configs: Configs,
        params: dict,
        config: ObjectiveConfig,
        *,
        device: str,
        autocast: bool,
        checkpointing: bool,
    ):
        self.config, self.device, self.autocast = config, device, autocast
        self.maps: dict[str, Tensor] = {}
        self.alpha_bar = torch.from_numpy(alphas_cumprod(ScheduleConfig())).float().to(device)
        self.vae = torch_model(AutoencoderKL, configs.vae.to_json(), params["vae"], Part(VAE))
        text = CLIPTextConfig(**configs.text_encoder.to_json())
        self.text = torch_model(CLIPTextModel, text, params["text_encoder"], Part(TEXT_ENCODER))
        unet = configs.unet.to_json()
        self.unet = torch_model(UNet2DConditionModel, unet, params["unet"], Part(UNET))
        models, trained = [self.vae, self.text, self.unet], [self.unet]
        if config.kind == "sdm":
            vision = CLIPVisionConfig(**configs.image_encoder.to_json())
            self.vision = torch_model(
                CLIPVisionModelWithProjection, vision, params["image_encoder"], Part(IMAGE_ENCODER)
            )
            width = configs.text_encoder.hidden_size
            fusion = params["subject_fusion"], Part(SUBJECT_FUSION)
            self.fusion = torch_model(Fusion, width, *fusion)
            models += [self.vision, self.fusion]
            trained += [self.fusion, *self.vision.vision_model.encoder.layers[-2:]]
            self._keep_maps()
        for model in models:
            model.to(device)
        if device == "cuda":
            for model in (self.vae, self.unet):
                model.to(memory_format=torch.channels_last)
        self.trained = [p.requires_grad_() for module in trained for p in module.parameters()]
        self.unet.train()
        if checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.optimizer = torch.optim.AdamW(
            self.trained, lr=1e-5, weight_decay=1e-2, fused=device == "cuda"
        )

    def _keep_maps(self) -> None:
        processors = dict(self.unet.attn_processors)
        for name in processors:
            level = name.split(".attentions")[0]
            if ".attn2." in name and level in self.config.localization_levels:
                processors[name] = KeepsMap(self.maps, name)
        self.unet.set_attn_processor(processors)

    def place(self, inputs: Inputs) -> dict[str, Tensor]:
        """A batch as PyTorch has it."""
        found = {
            "image": nchw(np.asarray(inputs.image)),
            "ids": torch.from_numpy(np.array(inputs.input_ids)).long(),
        }
        if self.config.kind == "sdm":
            found |= self._subjects(inputs)
        return {name: value.to(self.device) for name, value in found.items()}

    def _subjects(self, inputs: Inputs) -> dict[str, Tensor]:
        pixels = np.asarray(inputs.subject_pixels)
        pixels = (pixels - np.float32(MEAN)) / np.float32(STD)
        masks = torch.from_numpy(np.array(inputs.subject_masks))
        present = torch.from_numpy(np.array(inputs.has_subject))
        # The noise loss's mask: the union; everything where there is no subject.
        size = inputs.image.shape[1] // 2 ** (len(self.vae.config.block_out_channels) - 1)
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
            where = self.vae.encode(batch["image"]).latent_dist
            latents = (where.mean.float() + where.std.float() * posterior) * (
                self.vae.config.scaling_factor
            )
            context = self.text(batch["ids"])[0]
        level = self.alpha_bar[t][:, None, None, None]
        x = level.sqrt() * latents + (1 - level).sqrt() * noise
        if self.config.kind == "tdm":
            loss = F.mse_loss(self.unet(x, t, context).sample.float(), noise)
            return {"loss": loss, "denoising_loss": loss}
        subjects = self.vision(pixel_values=batch["pixels"]).image_embeds
        subjects = subjects.unflatten(0, batch["index"].shape)
        context = self.fusion(context, subjects, batch["index"], batch["present"])
        eps = self.unet(x, t, context).sample.float()
        mask = batch["union"] if bool(draws.use_mask) else 1.0
        denoising = F.mse_loss(mask * eps, mask * noise)
        localization = self.localization(batch)
        return {
            "loss": denoising + self.config.localization_weight * localization,
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
