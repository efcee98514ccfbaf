import pytest

from fd_jax.checkpoints.folders import write_json
from fd_jax.checkpoints.run_model import RunModel, write_model
from fd_jax.config import CLIPVisionConfig, ConfigError
from fd_jax.schedule import ScheduleConfig
from fd_jax.training.config import InitConfig
from fd_jax.training.initialize import given, read_sizes
from tests.conftest import TINY


@pytest.fixture
def tdm(tmp_path):
    """Folder of a TDM's run, without parameters."""
    folder = tmp_path / "tdm"
    folder.mkdir()
    write_model(folder, RunModel("tdm", TINY, ScheduleConfig()))
    return folder


def test_a_tdm_is_completed_by_the_image_encoder_that_is_given(tdm, tmp_path):
    write_json(tmp_path / "clip" / "config.json", TINY.image_encoder.to_json())
    init = InitConfig(checkpoint=tdm, image_encoder=tmp_path / "clip")
    assert read_sizes(init, None).configs == TINY
    assert given(init)["image_encoder"] == tmp_path / "clip"
    assert given(init)["vae"] == tdm


def test_an_image_encoder_that_does_not_fit_is_refused(tdm, tmp_path):
    write_json(tmp_path / "clip" / "config.json", CLIPVisionConfig().to_json())
    with pytest.raises(ConfigError, match="projection_dim of the image encoder is 768"):
        read_sizes(InitConfig(checkpoint=tdm, image_encoder=tmp_path / "clip"), None)
