import dataclasses

import pytest

from fd_jax.architecture import CLIPVisionConfig, ConfigError
from fd_jax.checkpoints.config_json import config_to_json
from fd_jax.checkpoints.merge import find_parts
from fd_jax.checkpoints.run.model_json import RunModel, write_model
from fd_jax.errors import InputError
from fd_jax.files import read_json, write_json
from fd_jax.schedule import ScheduleConfig
from fd_jax.training.config import InitConfig, ModelConfig
from fd_jax.training.initial_weights import find_architecture, open_sources
from tests.helpers.networks import TINY


def architecture_of(init, model=None):
    return find_architecture(open_sources(init), model)


def origins(init):
    return {part: source.path for part, source in find_parts(open_sources(init)).items()}


@pytest.fixture
def tdm(tmp_path):
    """Folder of a TDM's run, without parameters."""
    folder = tmp_path / "tdm"
    folder.mkdir()
    write_model(
        folder, RunModel("tdm", ("unet", "vae", "text_encoder"), TINY._asdict(), ScheduleConfig())
    )
    return folder


def test_a_tdm_is_completed_by_the_image_encoder_that_is_given(tdm, tmp_path):
    write_json(tmp_path / "clip" / "config.json", config_to_json(TINY.image_encoder))
    init = InitConfig(checkpoint=tdm, image_encoder=tmp_path / "clip")
    assert architecture_of(init)[0] == TINY
    assert origins(init)["vae"] == tdm


def test_an_image_encoder_that_does_not_fit_is_refused(tdm, tmp_path):
    write_json(tmp_path / "clip" / "config.json", config_to_json(CLIPVisionConfig()))
    with pytest.raises(ConfigError, match="projection_dim of the image encoder is 768"):
        architecture_of(InitConfig(checkpoint=tdm, image_encoder=tmp_path / "clip"))


@pytest.fixture
def vae(tmp_path):
    """Folder of a run that trained the autoencoder alone, without parameters."""
    folder = tmp_path / "vae"
    folder.mkdir()
    write_model(folder, RunModel("vae", ("vae",), TINY._asdict(), ScheduleConfig()))
    return folder


def test_an_autoencoder_is_completed_by_the_model_of_the_config(vae):
    assert set(read_json(vae / "model.json")) == {"kind", "parts", "vae"}
    schedule = ScheduleConfig(prediction_type="v_prediction")
    model = ModelConfig(**TINY._asdict(), schedule=schedule)
    assert architecture_of(InitConfig(checkpoint=vae), model) == (TINY, schedule)
    assert origins(InitConfig(checkpoint=vae)) == {"vae": vae}


def test_an_autoencoder_without_a_model_is_refused(vae):
    with pytest.raises(
        InputError, match=r"vae give no config of \['unet', .* expected .* or a config with `m"
    ):
        architecture_of(InitConfig(checkpoint=vae))


def test_an_autoencoder_that_does_not_fit_is_refused(vae):
    other = dataclasses.replace(TINY.vae, scaling_factor=0.5)
    model = ModelConfig(**TINY._replace(vae=other)._asdict())
    message = r"`model` of the config does not fit .*vae: vae.scaling_factor is 0.5, expected 0.1"
    with pytest.raises(InputError, match=message):
        architecture_of(InitConfig(checkpoint=vae), model)
