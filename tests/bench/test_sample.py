import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmem_jax.aot import flops
from gmem_jax.bench import _reference_sampler, sample
from gmem_jax.diffusion import guidance, samplers, schedule
from tests.bench import shapes

WEIGHTS = np.random.default_rng(0).standard_normal((6, 6), np.float32) / 3
METHODS = ["sde_heun", "ode_euler"]
# The sampler's keys, where the config is read.
SHORT = {"sampler__steps": 8, "sampler__timestep_shift": 0.3}


def config_of(method, scale):
  return sample.parse(
    shapes.arguments(
      **SHORT, sampler__method=method, sampler__guidance__scale=scale
    )
  ).recipe.sampler


def network(x, t, snippet):
  return jnp.tanh(x @ WEIGHTS + snippet) * (1 + t[:, None])


@pytest.fixture(scope="module")
def inputs():
  random = np.random.default_rng(1)
  draws = random.standard_normal((9, 3, 6), np.float32)
  found = [jnp.asarray(x) for x in (draws[0], draws[1], draws)]
  return (*found, jnp.float32(0))


def ours(config, x0, snippet, draws, zero):
  del zero

  def pair(x, t):
    return guidance.pair(network, x, t, snippet, jnp.zeros_like(snippet))

  return samplers.sample(
    config, lambda x, t: network(x, t, snippet), x0, lambda i: draws[i], pair
  )


def reference(config, x0, snippet, draws, zero):
  return _reference_sampler.sample(
    config, network, x0, lambda i: draws[i], snippet, zero
  )


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("method", METHODS)
def test_reference_samples_the_same_with_more_calls(method, scale, inputs):
  config = config_of(method, scale)
  found = [
    np.asarray(jax.jit(f, static_argnums=0)(config, *inputs))
    for f in (ours, reference)
  ]
  np.testing.assert_allclose(*found, rtol=1e-3, atol=1e-4)
  calls = [
    flops.count(jax.make_jaxpr(f, static_argnums=0)(config, *inputs))
    / (2 * 3 * 6 * 6)
    for f in (ours, reference)
  ]
  assert calls == [
    sum(schedule.num_calls(config) or ()),
    _reference_sampler.num_calls(config),
  ]


def test_the_published_sampler_costs_111_and_396_calls():
  config = sample.parse(shapes.arguments()).recipe.sampler
  assert sum(schedule.num_calls(config) or ()) == 111
  assert _reference_sampler.num_calls(config) == 396


def test_the_compiler_does_not_merge_the_reference_calls(inputs):
  config = config_of("sde_heun", 4.0)
  compiled = (
    jax.jit(reference, static_argnums=0).lower(config, *inputs).compile()
  )
  # Two calls each: at both ends of a step, and in the last one.
  assert compiled.as_text().count(" dot(") == 6


@pytest.fixture(scope="module")
def calls():
  recipe = sample.parse(shapes.arguments(sampler__steps=4)).recipe
  return sample.make(recipe)


@pytest.fixture
def made(calls, monkeypatch):
  """Spares compiling again."""
  monkeypatch.setattr(sample, "make", lambda config: calls)


def test_table(made, capsys):
  status = sample.main([*shapes.arguments(sampler__steps=4), "--repeats=1"])
  out = capsys.readouterr().out
  assert status == 0, out
  rows = [line.split("|") for line in out.splitlines() if line[:1] == "|"]
  names = [row[1].strip() for row in rows]
  assert names[2:4] == [sample.OURS, sample.REFERENCE]
  assert float(rows[2][5]) > 0


def test_other_images_fail_the_benchmark(made, monkeypatch, capsys):
  monkeypatch.setattr(sample, "different", lambda *_: (2, 0.001))
  status = sample.main([*shapes.arguments(sampler__steps=4), "--repeats=1"])
  assert status == 1
  assert "by at most 2" in " ".join(capsys.readouterr().out.split())


def test_difference_of_bytes():
  a = np.array([[0, 255, 7, 7]], np.uint8)
  b = np.array([[0, 254, 7, 10]], np.uint8)
  assert sample.different(a, b) == (3, 0.5)


def test_images_are_not_flat(calls):
  pixels = np.asarray(calls[0][sample.OURS]())
  assert len(np.unique(pixels)) > 20
  assert ((pixels == 0) | (pixels == 255)).mean() < 0.9


def test_other_samplers_are_refused(capsys):
  with pytest.raises(SystemExit):
    sample.parse(shapes.arguments(sampler__method="ode_heun2"))
  assert "config.sampler.method='ode_heun2'" in capsys.readouterr().err
