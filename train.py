"""Trains the TDM, the SDM, or the autoencoder that they share.

train.py --config configs/sdm_ffhq.py --workdir runs/sdm --data.root ffhq --init.base
stable-diffusion-v1-5 --init.image-encoder clip-vit-large-patch14

The same command again goes on where the run was stopped. Any setting of the config can be given
by its dotted name, such as --optimizer.learning-rate 2e-5.
"""

import logging
import os
import sys
import traceback
import warnings

import jax

from fd_jax import distributed
from fd_jax.errors import InputError
from fd_jax.training.config import parse
from fd_jax.training.loop import NonFiniteError
from fd_jax.training.run import train


def main() -> int:
    """Trains, and returns the exit status: 128 and its number after a signal."""
    line, config = parse(sys.argv[1:], __doc__)
    distributed.join(config.processes)
    distributed.enable_compile_cache()
    signal = train(config, line.workdir)
    if jax.process_index() == 0:
        if signal is None:
            print(f"trained {config.loop.num_steps} steps: {line.workdir}")
        else:
            print(f"stopped by signal {signal}; the same command goes on: {line.workdir}")
    return 0 if signal is None else 128 + signal


def cli() -> None:
    """Runs the command line."""
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax notes what is as it should be
    try:
        status = main()
    except (InputError, NonFiniteError, OSError) as error:
        status = fail(f"error: {error}")
    except jax.errors.JaxRuntimeError as error:
        traceback.print_exc()
        status = fail(
            f"error: {error}\nIf there are several processes, another one may have died: look at "
            "its messages. The last checkpoint is whole, and the same command goes on from it."
        )
    sys.exit(status)


def fail(message: str) -> int:
    """Says what is wrong; of several processes this one ends at once, and the others see it."""
    print(message, file=sys.stderr, flush=True)
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        # An orderly end would wait for the others, which wait for this one.
        os._exit(1)
    return 1


if __name__ == "__main__":
    cli()
