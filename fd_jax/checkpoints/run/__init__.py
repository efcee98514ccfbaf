"""Checkpoints of training runs: arrays by Orbax, networks in `model.json`."""
