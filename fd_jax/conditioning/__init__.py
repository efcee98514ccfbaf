"""Encoders of prompts and subjects: from tokens and photographs to cross-attention contexts."""
