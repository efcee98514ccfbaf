"""Paths of the files that come with the package."""

from pathlib import Path

_ASSETS = Path(__file__).parent / "assets"

TOKENIZER = _ASSETS / "tokenizer"  # vocabulary and merges of CLIP
PEOPLE = _ASSETS / "people"  # a folder of photographs for each synthetic person
DEMO = _ASSETS / "demo"  # the small models, as `checkpoints.bundle` writes them
PROMPTS = DEMO / "prompts.jsonl"  # prompts that show them
JUDGES = _ASSETS / "judges"  # networks that find faces and people
