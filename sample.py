"""Samples pictures of given people; the same as the command fd-sample.

python sample.py --trace --output outputs/demo
python sample.py --prompt "a man <|image|> in a forest" --reference man.jpg --output pictures
python sample.py --prompt-file prompts.jsonl --output pictures
python sample.py --sdm runs/sdm --tdm runs/tdm --prompt ...
python sample.py --help
"""

from fd_jax.inference.cli import main

if __name__ == "__main__":
    main()
