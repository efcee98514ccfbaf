import dataclasses
import json

import numpy as np
import pytest

from fd_jax import assets
from fd_jax.checkpoints.config_json import schedule_from_json, schedule_to_json
from fd_jax.schedule import ScheduleConfig, alphas_cumprod, final_alpha_cumprod

# The scheduler of Stable Diffusion 1.5.
SCHEDULER_CONFIG = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear"])
def test_betas_run_from_start_to_end(beta_schedule):
    config = ScheduleConfig(beta_schedule=beta_schedule, num_train_timesteps=101)

    levels = alphas_cumprod(config)

    assert levels.shape == (101,)
    assert levels.dtype == np.float64
    betas = 1 - levels / np.append(1, levels[:-1])
    np.testing.assert_allclose(betas[[0, -1]], [0.00085, 0.012], rtol=1e-9)
    increments = np.diff(betas if beta_schedule == "linear" else np.sqrt(betas))
    np.testing.assert_allclose(increments, increments[0], rtol=1e-8)


def test_levels_agree_with_diffusers():
    """diffusers 0.35.2 computes them in float32."""
    levels = alphas_cumprod(ScheduleConfig())[[0, 1, 500, 998, 999]]

    expected = [0.99914998, 0.99829602, 0.27633247, 0.00471670, 0.00466010]
    np.testing.assert_allclose(levels, expected, rtol=5e-6)


def test_sampling_ends_at_the_first_level_or_at_no_noise():
    config = ScheduleConfig(beta_start=0.01, beta_end=0.02)

    assert final_alpha_cumprod(config) == pytest.approx(0.99)
    assert final_alpha_cumprod(dataclasses.replace(config, set_alpha_to_one=True)) == 1


def test_reads_stable_diffusion():
    assert schedule_from_json(SCHEDULER_CONFIG) == ScheduleConfig()


def test_reads_every_field():
    fields = {
        "beta_start": 0.001,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "num_train_timesteps": 500,
        "steps_offset": 0,
        "set_alpha_to_one": True,
        "prediction_type": "v_prediction",
    }

    config = schedule_from_json(fields)

    assert dataclasses.asdict(config) == fields
    assert dataclasses.asdict(ScheduleConfig()).keys() == fields.keys()


def test_fields_that_the_file_lacks_keep_their_defaults():
    assert schedule_from_json({"steps_offset": 0}) == ScheduleConfig(steps_offset=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("trained_betas", [0.1, 0.2]),
        ("clip_sample", True),
        ("thresholding", True),
        ("rescale_betas_zero_snr", True),
        ("beta_schedule", "squaredcos_cap_v2"),
        ("prediction_type", "sample"),
        ("num_train_timesteps", "1000"),
        ("num_train_timesteps", 1000.5),
        ("steps_offset", True),
        ("beta_start", None),
    ],
)
def test_refuses_files_that_it_cannot_follow(name, value):
    with pytest.raises(ValueError, match=f"{name} is .*, expected "):
        schedule_from_json(SCHEDULER_CONFIG | {name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("beta_start", 0.0),
        ("beta_start", 0.5),
        ("beta_start", float("nan")),
        ("num_train_timesteps", 0),
        ("steps_offset", -1),
    ],
)
def test_refuses_values_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"{name} is .*, expected "):
        ScheduleConfig(**{name: value})


# The file of Stable Diffusion 1.5, without the version of diffusers.
SD15 = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}


def test_what_is_written_has_every_key_of_stable_diffusion():
    """diffusers' schedulers fill in others: its DDIM, for one, would clip latents to -1..1."""
    assert schedule_to_json(ScheduleConfig()) == SD15 | {"prediction_type": "epsilon"}
    bundled = json.loads((assets.DEMO / "base/scheduler/scheduler_config.json").read_text())
    assert bundled == SD15 | {"prediction_type": "v_prediction"}
