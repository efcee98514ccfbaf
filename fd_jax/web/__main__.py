"""Runs the command fd-demo."""

from fd_jax.web.cli import main

main()
