"""Data, latent cache, runs, models, LoRAs and pictures in a bucket, by one process and by two."""

import importlib.util

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save

from tests.helpers.bucket_server import losses_in, serve
from tests.helpers.networks import TINY
from tests.helpers.processes import start, together
from tests.helpers.training import CONFIG_FILE, PHOTOS
from tests.helpers.untrained import write_untrained

SDM = (
    'task="sdm", data__max_subjects=2, optimizer__train=(("unet/", 1.0), ("subject_fusion/", 1.0))'
)
KEY = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.fixture(scope="module")
def lora() -> bytes:
    """A LoRA of one matrix."""
    width = TINY.unet.block_out_channels[-1]
    rng = np.random.default_rng(0)
    tensors = {
        f"{KEY}.lora_down.weight": rng.normal(size=(2, TINY.unet.cross_attention_dim)),
        f"{KEY}.lora_up.weight": rng.normal(size=(width, 2)),
    }
    return save({name: tensor.astype(np.float32) for name, tensor in tensors.items()})


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("gcsfs") is None, reason="needs fd_jax[gcs]")
def test_all_in_a_bucket_is_as_on_a_disk(tmp_path, monkeypatch, lora):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "copies"))
    disk = tmp_path / "disk"
    write_untrained(disk / "models", TINY)
    (disk / "lora.safetensors").write_bytes(lora)
    configs = {"tdm": tmp_path / "tdm.py", "sdm": tmp_path / "sdm.py"}
    configs["tdm"].write_text(CONFIG_FILE.format("data__batch_size=8"))
    configs["sdm"].write_text(CONFIG_FILE.format(f"data__batch_size=8, {SDM}"))

    def run(script: str, *arguments: object, processes: int = 1, devices: int = 1) -> None:
        prefix = "processes." if script == "train.py" else ""
        texts = [str(argument) for argument in arguments]
        shares = [texts] if processes == 1 else together(texts, processes, prefix)
        logs = [tmp_path / f"{i}.log" for i in range(processes)]
        started = [
            start(script, share, log, devices=devices)
            for share, log in zip(shares, logs, strict=True)
        ]
        try:
            statuses = [process.wait(timeout=900) for process in started]
        finally:
            for process in started:
                process.kill()
        assert not any(statuses), "\n".join(log.read_text()[-3000:] for log in logs)

    def train(task: str, where: object, source: object, data: object, **options: int) -> None:
        cache = () if where == disk else ("--data.latent-cache", f"{where}/cache_{task}")
        run(
            *("train.py", "--config", configs[task], "--workdir", f"{where}/{task}"),
            *("--data.root", data, "--init.base", f"{source}/models/base", *cache),
            *(["--init.image-encoder", f"{source}/models/clip"] if task == "sdm" else []),
            **options,
        )

    def sample(where: object) -> None:
        run(
            *("sample.py", "--sdm", f"{where}/sdm", "--tdm", f"{where}/tdm"),
            *("--lora", f"{where}/lora.safetensors:0.5", "--lora-on", "sdm"),
            *("--prompt", "a man <|image|>", "--reference", f"{where}/photo.jpg"),
            *("--num-steps", 4, "--num-images", 2, "--output", f"{where}/pictures"),
        )

    with serve("bucket") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        for folder, prefix in ((PHOTOS, "data"), (disk, "")):
            for path in folder.rglob("*"):
                if path.is_file():
                    name = f"{prefix}/{path.relative_to(folder)}".removeprefix("/")
                    server.put("bucket", name, path.read_bytes())
        bucket = "gs://bucket"
        train("tdm", bucket, bucket, f"{bucket}/data", processes=2, devices=2)
        train("sdm", bucket, bucket, f"{bucket}/data", processes=2, devices=2)
        assert any(name.startswith("cache_sdm/") for name in server.names("bucket"))
        for task in ("tdm", "sdm"):
            train(task, disk, disk, PHOTOS)
            lines = (disk / task / "metrics.jsonl").read_bytes()
            server.put("bucket", f"disk_{task}/metrics.jsonl", lines)
            assert losses_in(server, task) == pytest.approx(
                losses_in(server, f"disk_{task}"), rel=1e-4
            )

        photograph = next(path for path in sorted(PHOTOS.rglob("*")) if path.suffix == ".jpg")
        server.put("bucket", "photo.jpg", photograph.read_bytes())
        sample(bucket)
        # What is in the bucket, on a disk.
        copy = tmp_path / "copy"
        for name in server.names("bucket"):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes(server.content("bucket", name))
        pictures = sorted((copy / "pictures").glob("*.png"))
        made = [np.asarray(Image.open(path)) for path in pictures]
        assert len(made) == 2
        for path in pictures:
            path.unlink()
        sample(copy)
        for path, pixels in zip(pictures, made, strict=True):
            np.testing.assert_array_equal(np.asarray(Image.open(path)), pixels)
