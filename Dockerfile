# Sampling and training on GPUs: docker build -t fd_jax . && docker run --gpus all -v "$PWD/runs:/runs" fd_jax
# fd-train --config sdm_ffhq --workdir /runs/sdm ...  For TPUs: --build-arg JAX_EXTRA=tpu
FROM python:3.12-slim

ARG JAX_EXTRA=cuda13
WORKDIR /fd_jax
COPY . .
RUN pip install --no-cache-dir ".[train,gcs]" "jax[${JAX_EXTRA}]"

# Compiled functions are kept where every user may write.
ENV JAX_COMPILATION_CACHE_DIR=/tmp/fd_jax
WORKDIR /
CMD ["fd-sample", "--guidance-scale", "3", "--trace", "--output", "/tmp/demo"]
