"""Evaluation: judges of identity and confidence intervals."""
