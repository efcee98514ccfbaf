"""What comes with the package."""

from pathlib import Path

_ASSETS = Path(__file__).parent / "assets"

TOKENIZER = _ASSETS / "tokenizer"  # CLIP's
PEOPLE = _ASSETS / "people"  # photographs of synthetic people
