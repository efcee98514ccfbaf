"""Options of the compiler: they do what they are for, and only where it is known."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fd_jax import compilation, sharding
from fd_jax.compilation import compiler_options

CPU = sharding.make_mesh(jax.devices()[:1])
X = np.ones((256, 256), np.float32)


@pytest.fixture
def asked_anew():
    """Lets the compiler be asked again, before and after the test."""
    compilation._is_known.cache_clear()
    yield
    compilation._is_known.cache_clear()


def program(**options):
    return jax.jit(lambda x: x @ x, **options).lower(X).compile().as_text()


def test_float32_on_a_cpu_is_computed_without_ynnpack():
    assert "__ynn_fusion" in program()
    assert "__ynn_fusion" not in program(compiler_options=compiler_options(CPU, jnp.float32))


def test_only_sums_are_left_to_ynnpack_where_gradients_are_computed():
    options = compiler_options(CPU, jnp.float32, has_gradients=True)
    assert "__ynn_fusion" not in program(compiler_options=options)
    total = jax.jit(lambda x: x.sum(axis=0), compiler_options=options).lower(X).compile()
    assert "__ynn_fusion" in total.as_text()


def test_other_programs_are_compiled_as_ever():
    gpu = mock.Mock(jax.sharding.Mesh, devices=np.array([mock.Mock(platform="gpu")]))
    assert compiler_options(CPU, jnp.bfloat16) == {}
    assert compiler_options(gpu, jnp.float32) == {}


def test_the_compiler_knows_all_options():
    assert compiler_options(CPU, jnp.float32) == compilation._CPU_OPTIONS
    gradients = compiler_options(CPU, jnp.float32, has_gradients=True)
    assert gradients == compilation._CPU_GRADIENT_OPTIONS


def test_an_option_that_the_compiler_does_not_know_is_left_out(monkeypatch, asked_anew):
    known = "xla_backend_optimization_level"
    monkeypatch.setattr(compilation, "_CPU_OPTIONS", {"xla_no_such_option": "", known: "1"})
    assert compiler_options(CPU, jnp.float32) == {known: "1"}


def test_another_refusal_of_the_compiler_is_not_hidden(monkeypatch, asked_anew):
    monkeypatch.setattr(compilation, "_CPU_OPTIONS", {"xla_backend_optimization_level": "x"})
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_backend_optimization_level"):
        compiler_options(CPU, jnp.float32)
