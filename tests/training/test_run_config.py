from fd_jax.config import to_json
from fd_jax.training.run_config import changed_settings
from tests.helpers.training import make_config


def test_settings_of_version_0_1_are_the_same():
    config = make_config(task="tdm")
    stored = to_json(config)
    del stored["task"]
    stored["objective"] |= {"kind": "tdm", "appearance_weight": 0.0}
    assert changed_settings(stored, config) == {}
    stored["objective"] |= {"appearance_weight": 1.0}
    assert changed_settings(stored, config) == {"objective.appearance_weight": (1.0, None)}
