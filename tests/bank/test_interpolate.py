"""Interpolations of snippets: published numbers, and what they got wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmem_jax.bank import interpolate

TOLERANCE = 1e-4
METHODS = {"linear": interpolate.linear, "spherical": interpolate.spherical}


def _load(golden_dir):
  with np.load(golden_dir / "bank.npz", allow_pickle=False) as file:
    return {key: file[key] for key in file.files if file[key].dtype.kind != "U"}


def _pairs(golden):
  return [
    key.removeprefix("interp_").removesuffix("_a")
    for key in golden
    if key.startswith("interp_") and key.endswith("_a") and "take" not in key
  ]


def _close(actual, expected):
  error = np.max(np.abs(actual - expected)) / np.max(np.abs(expected))
  assert error < TOLERANCE, error


@pytest.mark.golden
@pytest.mark.parametrize("method", METHODS)
def test_published_numbers(golden_dir, method):
  golden = _load(golden_dir)
  compared = []
  for name in _pairs(golden):
    a, b = (jnp.asarray(golden[f"interp_{name}_{end}"]) for end in "ab")
    alphas = jnp.asarray(golden["alphas"], jnp.float32)
    actual = jax.vmap(METHODS[method], in_axes=(None, None, 0))(a, b, alphas)
    assert np.all(np.isfinite(actual))
    np.testing.assert_allclose(actual[0], a, atol=1e-6 * np.max(np.abs(a)))
    np.testing.assert_allclose(actual[-1], b, atol=1e-5 * np.max(np.abs(b)))
    # acos(dot) keeps no digits near +-1 and is clamped beyond: the published
    # spherical numbers of such pairs hang on the last bit of the dot product.
    if method == "linear" or abs(float(jnp.dot(a, b))) < 0.9999:
      _close(actual, golden[f"interp_{name}_{method}"])
      compared.append(name)
    else:
      # Ours stay on the sphere, where the published ones may be zero.
      lengths = np.linalg.norm(actual, axis=-1)
      ends = [float(jnp.linalg.norm(v)) for v in (a, b)]
      assert np.all(lengths > 0.99 * min(ends))
      assert np.all(lengths < 1.01 * max(ends))
  assert compared


@pytest.mark.golden
def test_published_pipeline(golden_dir, monkeypatch):
  golden = _load(golden_dir)
  a, b = jnp.asarray(golden["pipeline_A"]), jnp.asarray(golden["pipeline_B"])
  for method in METHODS:
    expected = golden[f"pipeline_{method}"]
    actual = interpolate.between(method, a, b, len(expected))
    _close(actual, expected)

  a, b = jnp.asarray(golden["interp_ab_a"]), jnp.asarray(golden["interp_ab_b"])
  actual = interpolate.between("concat", a, b, 7)
  _close(actual, golden["pipeline_concat_1d"])
  uniform = jnp.asarray(golden["pipeline_mask_uniform"])
  monkeypatch.setattr(jax.random, "uniform", lambda *_: uniform)
  actual = interpolate.between("mask", a, b, len(uniform), jax.random.key(0))
  _close(actual, golden["pipeline_mask_1d"])


@pytest.mark.golden
def test_published_concatenation_and_mask(golden_dir):
  golden = _load(golden_dir)
  a, b = jnp.asarray(golden["interp_ab_a"]), jnp.asarray(golden["interp_ab_b"])
  _close(interpolate.concat(a, b), golden["interp_ab_concat"])
  uniform = jnp.asarray(golden["interp_ab_mask_uniform"])
  np.testing.assert_array_equal(uniform > 0.5, golden["interp_ab_mask_take_a"])
  _close(interpolate.mask(a, b, uniform), golden["interp_ab_mask"])


def _unit_vectors(shape, seed=0):
  x = jax.random.normal(jax.random.key(seed), shape)
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("apart", [0.0, 1e-7, 1e-5, 1e-3, 0.5, 3.14, np.pi])
def test_the_arc_has_constant_speed_at_every_angle(apart):
  a, other = _unit_vectors((2, 768))
  across = other - jnp.dot(a, other) * a
  across /= jnp.linalg.norm(across)
  b = np.cos(apart) * a + np.sin(apart) * across
  points = interpolate.between("spherical", a, b, 9)
  np.testing.assert_allclose(jnp.linalg.norm(points, axis=1), 1, atol=1e-6)
  gaps = jnp.linalg.norm(points[1:] - points[:-1], axis=1)
  np.testing.assert_allclose(gaps, 2 * np.sin(apart / 16), atol=2e-6)
  np.testing.assert_allclose(points[0], a, atol=1e-6)
  np.testing.assert_allclose(points[-1], b, atol=1e-6)


def test_equal_snippets_stay_what_they_are():
  a = _unit_vectors((768,))
  points = interpolate.between("spherical", a, a, 5)
  np.testing.assert_allclose(points, jnp.stack([a] * 5), atol=1e-6)


def test_batches_split_features_not_samples():
  a, b = _unit_vectors((2, 3, 8))
  np.testing.assert_array_equal(
    interpolate.concat(a, b),
    np.concatenate([a[:, :4], b[:, 4:]], axis=1),
  )


def test_every_point_has_a_mask_of_its_own():
  a, b = jnp.ones(64), -jnp.ones(64)
  points = interpolate.between("mask", a, b, 3, jax.random.key(1))
  signs = np.sign(points)
  assert set(signs.flat) == {-1, 1}
  assert not np.array_equal(signs[0], signs[1])
  assert not np.array_equal(signs[1], signs[2])


@pytest.mark.parametrize(
  ("method", "points", "key"),
  [("linear", 1, None), ("spherical", 0, None), ("mask", 3, None)],
)
def test_impossible_requests(method, points, key):
  a, b = _unit_vectors((2, 8))
  with pytest.raises(ValueError, match=method):
    interpolate.between(method, a, b, points, key)


def test_a_mixture_is_the_direction_of_the_weighted_sum():
  vectors = np.array([[2.0, 0, 0], [0, 5, 0], [0, 0, 0.1]], np.float32)
  mixed = interpolate.mixture(jnp.asarray(vectors), jnp.array([3.0, 0.0, 4.0]))
  np.testing.assert_allclose(mixed, [0.6, 0, 0.8], atol=1e-6)
  opposite = jnp.array([[1.0, 0], [-2.0, 0]])
  np.testing.assert_array_equal(
    interpolate.mixture(opposite, jnp.array([1.0, 1.0])), [0, 0]
  )
