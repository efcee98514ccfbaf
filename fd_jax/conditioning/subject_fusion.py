"""Writes subjects into the words of a prompt (FastComposer, arXiv:2305.10431)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fd_jax.conditioning.clip_layers import layer_norm
from fd_jax.types import Context, HasSubject, SubjectEmbeds, SubjectIndex


class FusionMLP(nnx.Module):
    """Computes fc2(gelu(fc1(norm(x)))), with the exact GELU."""

    def __init__(self, in_dim: int, dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.layernorm = layer_norm(in_dim, dtype=dtype, rngs=rngs)
        self.fc1 = nnx.Linear(in_dim, dim, dtype=dtype, rngs=rngs)
        self.fc2 = nnx.Linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b s i"]) -> Float[Array, "b s d"]:
        return self.fc2(jax.nn.gelu(self.fc1(self.layernorm(x)), approximate=False))


class SubjectFusion(nnx.Module):
    """Replaces each subject's token embedding by a mixture of it and the subject's embedding.

    Args:
        dim: Width of text and subject embeddings.
        dtype: Dtype of the computation, except in norms.
        rngs: Keys for parameter initialization. None is kept after construction.
    """

    def __init__(self, dim: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        common = {"dtype": dtype, "rngs": rngs}
        self.mlp1 = FusionMLP(2 * dim, dim, **common)
        self.mlp2 = FusionMLP(dim, dim, **common)
        self.layer_norm = layer_norm(dim, **common)

    def __call__(
        self,
        text: Context,
        subjects: SubjectEmbeds,
        index: SubjectIndex,
        has_subject: HasSubject,
    ) -> Context:
        """Returns `text` with its subjects' tokens replaced.

        Args:
            text: Output of the text encoder.
            subjects: Output of the image encoder.
            index: Position of each subject's token.
            has_subject: Whether each subject is present; absent ones change nothing.
        """
        psi = jnp.take_along_axis(text, index[:, :, None], axis=1)
        h = self.mlp1(jnp.concatenate([psi, subjects.astype(psi.dtype)], axis=-1)) + psi
        h = self.layer_norm(self.mlp2(h) + h)
        # Absent subjects get a position beyond the end, where mode `drop` writes nothing.
        index = jnp.where(has_subject, index, text.shape[1])
        # Row by row: indexing the batch axis would gather a sharded batch.
        return jax.vmap(lambda row, i, new: row.at[i].set(new, mode="drop"))(text, index, h)
