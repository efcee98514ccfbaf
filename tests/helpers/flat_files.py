"""Networks of the released files, and short forms of loading them."""

from fd_jax.checkpoints.flat_file import PARTS, load_parts, open_flat_file
from fd_jax.checkpoints.merge import merge
from fd_jax.checkpoints.weights import open_weights

SDM_PARTS = PARTS
TDM_PARTS = {part: PARTS[part] for part in ("text_encoder", "vae", "unet")}


def load_flat_file(path, parts, abstract, placement, *, wanted):
    """Loads networks of a flat file that may hold those of `parts`."""
    shapes = {part: abstract[part] for part in parts}
    return load_parts(open_flat_file(path), wanted, shapes, placement)


def read_configs(base, image_encoder):
    """Reads architecture and schedule of a base, and of a CLIP if one is given."""
    paths = [path for path in (base, image_encoder) if path is not None]
    return merge([open_weights(path) for path in paths])
