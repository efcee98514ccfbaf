"""Shapes that recur, by the names of the field."""

from typing import Any

from jaxtyping import Array, Bool, Float, Int

Params = dict[Any, Any]  # parameters of a module, nested as the module is

Latents = Float[Array, "b h w 4"]  # scaled VAE output; channels last as everywhere
Images = Float[Array, "b h w 3"]  # in [-1, 1]
Tokens = Int[Array, "b tokens"]
Context = Float[Array, "b tokens context"]  # what cross-attention attends to
SubjectPixels = Float[Array, "b s h w 3"]  # photographs of up to s subjects, in [0, 1]
SubjectEmbeds = Float[Array, "b s context"]
SubjectIndex = Int[Array, "b s"]  # position of each subject's token
HasSubject = Bool[Array, "b s"]
