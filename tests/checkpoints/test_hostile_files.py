"""Mutated checkpoints, configs and prompt files: nothing is executed, hangs or goes unnamed."""

import pytest

from tests.helpers.processes import fuzz


@pytest.mark.slow
def test_mutated_files_are_read_or_refused_by_name(tmp_path):
    found = fuzz("tests.helpers.fuzz_checkpoints", tmp_path, rounds=40)
    assert found["executed"] == []
    assert {name: count["wrong"] for name, count in found["counts"].items() if count["wrong"]} == {}
    assert max(count["slowest"] for count in found["counts"].values()) < 20
    assert any(count["refused"] for count in found["counts"].values())
