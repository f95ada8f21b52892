"""The linear tokenizer: against scikit-learn, and on images that are alike."""

import jax.numpy as jnp
import numpy as np
import pytest

from gmem_jax.data import sources
from gmem_jax.models.encoders import patch_pca, protocols

PATCH = 4
D = PATCH * PATCH


@pytest.fixture(scope="module")
def digits():
  """Digits in [-1, 1], float32 [n 8 8 1]."""
  return np.float32(sources.digits().pixels / 127.5 - 1)


def _tokenizer(images, channels, patch=PATCH):
  fitted = patch_pca.fit(np.array_split(images, 3), patch, channels)
  mean, basis = jnp.asarray(fitted.mean), jnp.asarray(fitted.basis)
  tokenizer = patch_pca.PatchPCATokenizer("patch_pca", patch, mean, basis)
  return tokenizer, fitted.kept


def _patches(images):
  rows = [images[:, y : y + 4, x : x + 4] for y in (0, 4) for x in (0, 4)]
  return np.stack(rows, axis=1).reshape(-1, D)


def test_latents_are_principal_components(digits):
  decomposition = pytest.importorskip(
    "sklearn.decomposition", reason="the independent PCA is scikit-learn's"
  )
  pca = decomposition.PCA(6).fit(_patches(digits))
  tokenizer, kept = _tokenizer(digits, 6)
  assert isinstance(tokenizer, protocols.Tokenizer)
  latents = tokenizer.encode(jnp.asarray(digits))
  assert latents.shape == (len(digits), 2, 2, 6)
  theirs = pca.transform(_patches(digits))
  mixed = np.asarray(latents).reshape(-1, 6)
  ours = mixed @ patch_pca.mixture(6).T
  signs = np.sign((ours * theirs).sum(axis=0))
  np.testing.assert_allclose(ours, theirs * signs, atol=1e-4)
  assert kept == pytest.approx(pca.explained_variance_ratio_.sum(), abs=1e-5)
  # No channel is fainter than the others, as those of single directions are.
  assert mixed.std(axis=0).min() > 0.5 * mixed.std(axis=0).max()
  assert ours.std(axis=0).min() < 0.5 * ours.std(axis=0).max()
  back = np.asarray(tokenizer.decode(latents))
  assert back.shape == digits.shape
  expected = pca.inverse_transform(theirs)
  np.testing.assert_allclose(_patches(back), expected, atol=1e-4)


def test_all_directions_lose_nothing():
  random = np.random.default_rng(0)
  images = random.uniform(-1, 1, (40, 8, 12, 3)).astype(np.float32)
  tokenizer, kept = _tokenizer(images, 3 * D)
  assert kept == pytest.approx(1)
  latents = tokenizer.encode(jnp.asarray(images))
  assert latents.shape == (40, 2, 3, 48)
  np.testing.assert_allclose(tokenizer.decode(latents), images, atol=1e-5)
  shape = protocols.image_shape(tokenizer, (2, 3, 48))
  assert shape == (8, 12, 3)


@pytest.mark.parametrize(("colours", "directions"), [(1, 0), (2, 1)])
def test_too_few_directions_are_counted(colours, directions):
  images = np.ones((6, 8, 8, 3), np.float32)
  images[:3] *= 1 if colours == 1 else 0.25
  with pytest.raises(ValueError, match=f"channels=2: .* {directions} direct"):
    patch_pca.fit([images], PATCH, 2)
