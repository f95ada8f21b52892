"""The snippet with a layout: its two projections, and images that are alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmem_jax.models.encoders import layout_pca, protocols, resize

WIDTH = 12


class _Tokens:
  """An encoder of 8 x 8 images: 4 x 4 tokens of 5 numbers, and their mean."""

  name = "tokens"
  width = 5

  def __call__(self, images):
    patches = images.reshape(len(images), 4, 2, 4, 2, 1)
    tokens = patches.transpose(0, 1, 3, 2, 4, 5).reshape(len(images), 16, 4)
    tokens = jnp.concatenate([tokens, (tokens**2).sum(-1, keepdims=True)], -1)
    return tokens.mean(axis=1), tokens


jax.tree_util.register_static(_Tokens)


@pytest.fixture(scope="module")
def images():
  shape = (70, 8, 8, 1)
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def _encoder(images):
  batches = images[:30], images[30:60], images[60:]
  fitted = layout_pca.fit((b for b in batches if len(b)), _Tokens(), WIDTH)
  arrays = layout_pca.Projections(*map(jnp.asarray, fitted))
  return layout_pca.LayoutEncoder("fitted", _Tokens(), arrays)


def test_snippets_are_principal_components_of_feature_and_layout(images):
  decomposition = pytest.importorskip(
    "sklearn.decomposition", reason="the independent PCA is scikit-learn's"
  )
  features, tokens = map(np.asarray, _Tokens()(jnp.asarray(images)))
  parts = []
  for vectors, width in ((features, 4), (tokens.reshape(70, -1), 8)):
    theirs = decomposition.PCA(width).fit_transform(vectors)
    parts.append(theirs / np.linalg.norm(theirs, axis=1, keepdims=True))
  expected = np.concatenate(parts, axis=1) / np.sqrt(2)
  encoder = _encoder(images)
  assert isinstance(encoder, protocols.FeatureEncoder)
  ours, same = map(np.asarray, encoder(jnp.asarray(images)))
  assert ours.shape == (70, encoder.width) == (70, WIDTH)
  signs = np.sign((ours * expected).sum(axis=0))
  np.testing.assert_allclose(ours, expected * signs, atol=1e-4)
  np.testing.assert_array_equal(same, tokens)


def test_few_images_leave_zeros_and_no_nan(images):
  few = images[:3]
  encoder = _encoder(few)
  snippets = np.asarray(encoder(jnp.asarray(images))[0])
  # Three points span two directions; each part has the rest empty.
  assert (np.abs(snippets).max(axis=0) > 1e-6).sum() == 4
  np.testing.assert_allclose(np.linalg.norm(snippets, axis=1), 1, rtol=1e-5)
  # An image that is the mean of those fitted projects to nothing.
  alike = np.repeat(images[:1], 5, axis=0)
  snippet = np.asarray(_encoder(alike)(jnp.asarray(alike))[0])
  assert not np.isnan(snippet).any()
  assert np.abs(snippet).max() == 0


def test_the_layout_tells_where(images):
  encoder = _encoder(images)
  one = jnp.zeros((1, 8, 8, 1)).at[0, :2, :2].set(3.0)
  there, mirrored = encoder(one)[0], encoder(one[:, :, ::-1])[0]
  np.testing.assert_allclose(there[:, :4], mirrored[:, :4], atol=1e-6)
  assert float(jnp.abs(there[:, 4:] - mirrored[:, 4:]).max()) > 0.1


def test_tokens_of_a_larger_map_are_averaged():
  tokens = jnp.arange(2 * 64 * 3.0).reshape(2, 64, 3)
  cells = layout_pca.layout(tokens).reshape(2, 4, 4, 3)
  np.testing.assert_allclose(cells[0, 0, 0], tokens[0, [0, 1, 8, 9]].mean(0))
  whole = resize.pool_grid(tokens.reshape(2, 8, 8, 3), 1)
  np.testing.assert_allclose(whole[:, 0, 0], tokens.mean(1), rtol=1e-6)
  with pytest.raises(ValueError, match="60 tokens are no square"):
    layout_pca.layout(tokens[:, :60])
