"""`python -m fd_jax.data.prepare PHOTOS OUT`, the same as `fd-data prepare PHOTOS OUT`."""

import inspect

from fd_jax import cli
from fd_jax.data.prepare.cli import prepare

if __name__ == "__main__":
    text = (prepare.__doc__ or "").partition("Args:")[0]
    cli.run(prepare, prog="python -m fd_jax.data.prepare", description=inspect.cleandoc(text))
