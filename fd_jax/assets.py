"""What comes with the package."""

from pathlib import Path

_ASSETS = Path(__file__).parent / "assets"

TOKENIZER = _ASSETS / "tokenizer"  # CLIP's
PEOPLE = _ASSETS / "people"  # photographs of synthetic people
DEMO = _ASSETS / "demo"  # small models, as `fd_jax.checkpoints.bundle` writes them
PROMPTS = DEMO / "prompts.jsonl"  # what they are shown with
JUDGES = _ASSETS / "judges"  # networks that find faces and people
