"""Names of Stable Diffusion 1.x in the code that first released it, latent diffusion (LDM).

There, blocks are numbered through: all of the UNet's way down is `input_blocks`, and a block is a
residual network, its attention, and whatever follows. The VAE's way up is numbered from the end.
"""

import re
from collections.abc import Callable

from fd_jax.checkpoints.torch import names
from fd_jax.checkpoints.torch.names import Names, Part, Substitutions
from fd_jax.types import Params

UNET_PREFIX = "model.diffusion_model."
EMA_PREFIX = "model_ema."
VAE_PREFIX = "first_stage_model."
TEXT_PREFIX = "cond_stage_model.transformer.text_model."

_RESNET = (
    (r"\.norm1\.", ".in_layers.0."),
    (r"\.conv1\.", ".in_layers.2."),
    (r"\.time_emb_proj\.", ".emb_layers.1."),
    (r"\.norm2\.", ".out_layers.0."),
    (r"\.conv2\.", ".out_layers.3."),
    (r"\.conv_shortcut\.", ".skip_connection."),
)
_UNET_ENDS = (
    (r"^conv_in\.", "input_blocks.0.0."),
    (r"^time_embedding\.linear_1\.", "time_embed.0."),
    (r"^time_embedding\.linear_2\.", "time_embed.2."),
    (r"^mid_block\.resnets\.0\.", "middle_block.0."),
    (r"^mid_block\.attentions\.0\.", "middle_block.1."),
    (r"^mid_block\.resnets\.1\.", "middle_block.2."),
    (r"^conv_norm_out\.", "out.0."),
    (r"^conv_out\.", "out.2."),
)
_VAE_ENDS = (
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.group_norm\.", ".norm."),
)


def unet_part(abstract: Params, *, ema: bool = False) -> Part:
    """Returns how a UNet's tensors are named, or those of its exponential moving average.

    Args:
        abstract: Shapes of the UNet's parameters.
        ema: Whether the names are those of the average, which have no dots.
    """
    down, up = abstract["down_blocks"], abstract["up_blocks"]
    num = len(down[0]["resnets"])  # of a level on the way down; on the way up it is one more
    attends = {int(i): "attentions" in block for i, block in up.items()}

    def block(name: str, first: int, place: str) -> Callable[[re.Match], str]:
        def number(found: re.Match) -> str:
            return f"{name}.{(num + 1) * int(found[1]) + int(found[2]) + first}.{place}."

        return number

    def upsampler(found: re.Match) -> str:
        level = int(found[1])
        return f"output_blocks.{(num + 1) * level + num}.{1 + attends[level]}.conv."

    def downsampler(found: re.Match) -> str:
        return f"input_blocks.{(num + 1) * (int(found[1]) + 1)}.0.op."

    blocks: Substitutions = (
        (r"^down_blocks\.(\d+)\.downsamplers\.0\.conv\.", downsampler),
        (r"^up_blocks\.(\d+)\.upsamplers\.0\.conv\.", upsampler),
        (r"^down_blocks\.(\d+)\.resnets\.(\d+)\.", block("input_blocks", 1, "0")),
        (r"^down_blocks\.(\d+)\.attentions\.(\d+)\.", block("input_blocks", 1, "1")),
        (r"^up_blocks\.(\d+)\.resnets\.(\d+)\.", block("output_blocks", 0, "0")),
        (r"^up_blocks\.(\d+)\.attentions\.(\d+)\.", block("output_blocks", 0, "1")),
    )
    # Before the numbers, while residual networks can be told from transformers.
    resnets = tuple((rf"(resnets\.\d+){old}", rf"\1{new}") for old, new in _RESNET)
    rules = (*names.UNET.ours_to_torch, *resnets, *_UNET_ENDS, *blocks)
    if ema:
        return Part(Names((*rules, (r"\.", ""))), f"{EMA_PREFIX}diffusion_model")
    return Part(Names(rules), UNET_PREFIX)


def vae_part(abstract: Params) -> Part:
    """Returns how a VAE's tensors are named, given the shapes of its parameters."""
    last = len(abstract["decoder"]["up_blocks"]) - 1

    def up(kind: str) -> Callable[[re.Match], str]:
        return lambda found: f"decoder.up.{last - int(found[1])}.{kind}."

    def up_block(found: re.Match) -> str:
        return f"decoder.up.{last - int(found[1])}.block.{found[2]}."

    blocks: Substitutions = (
        (r"^encoder\.down_blocks\.(\d+)\.resnets\.(\d+)\.", r"encoder.down.\1.block.\2."),
        (r"^encoder\.down_blocks\.(\d+)\.downsamplers\.0\.", r"encoder.down.\1.downsample."),
        (r"^decoder\.up_blocks\.(\d+)\.resnets\.(\d+)\.", up_block),
        (r"^decoder\.up_blocks\.(\d+)\.upsamplers\.0\.", up("upsample")),
    )
    rules = (*names.VAE.ours_to_torch, *names.LDM_ATTENTION, *blocks, *_VAE_ENDS)
    return Part(
        Names(
            rules,
            names.OTHER_LDM_ATTENTIONS,
            convolutions=r".*\.mid\.attn_1\.(q|k|v|proj_out)\.weight",
        ),
        VAE_PREFIX,
    )


def text_encoder_part(prefix: str = TEXT_PREFIX) -> Part:
    """Returns how the tensors of CLIP's text encoder are named."""
    return Part(names.TEXT_ENCODER, prefix)
