"""Runs `fd-data` as `python -m fd_jax.data.ffhq check|build`."""

from fd_jax.data.cli import main

if __name__ == "__main__":
    main()
