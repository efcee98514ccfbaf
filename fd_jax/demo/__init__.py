"""Painted scenes, and the evaluation of the models trained on them."""
