"""Types of arrays that several modules share."""

from typing import Any

from jaxtyping import Array, Bool, Float, Int

Params = dict[Any, Any]  # parameters of a module, as nested dicts

Latents = Float[
    Array, "b h w 4"
]  # scaled output of the VAE's encoder; channels are last everywhere
Images = Float[Array, "b h w 3"]  # in [-1, 1]
Tokens = Int[Array, "b tokens"]
Context = Float[Array, "b tokens context"]  # keys and values of cross-attention
SubjectPixels = Float[Array, "b s h w 3"]  # photographs of s subjects, in [0, 1]
SubjectEmbeds = Float[Array, "b s context"]
SubjectIndex = Int[Array, "b s"]  # position of each subject's token
HasSubject = Bool[Array, "b s"]
