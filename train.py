"""Trains the TDM, the SDM, or the autoencoder that they share; the same as the command fd-train.

python train.py --config sdm_ffhq --workdir runs/sdm --data.root ffhq --init.base
stable-diffusion-v1-5 --init.image-encoder clip-vit-large-patch14
python train.py --config sdm_ffhq --help
"""

from fd_jax.training.cli import main

if __name__ == "__main__":
    main()
