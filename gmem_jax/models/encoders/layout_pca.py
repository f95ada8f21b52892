"""A snippet that says what an image shows and where: two fitted projections.

A pooled feature tells what is in an image, not where. This snippet has both:
the principal components of the feature, beside those of the encoder's tokens
averaged over the cells of a coarse grid. It is fitted to a run's own images in
seconds, has any width, and works with every encoder that has tokens.

Letters: `b` batch, `d` feature width, `t` token width, `g` side of the grid,
`k l` widths of the two parts, `s` = k + l snippet width.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gmem_jax.models.encoders import pca, protocols, resize

# Cells of the grid on each side.
GRID = 4
# Norms are kept above this: an image of one colour may project to nothing.
_SMALLEST = 1e-6


class Projections(NamedTuple):
  """What `fit` finds; float32.

  Attributes:
    feature_mean: Of all features.
    feature_basis: Orthonormal; columns of zeros where the images vary in fewer
      directions.
    layout_mean: Of the tokens' averages in all cells.
    layout_basis: As `feature_basis`.
  """

  feature_mean: Float[np.ndarray, " d"]
  feature_basis: Float[np.ndarray, "d k"]
  layout_mean: Float[np.ndarray, " ggt"]
  layout_basis: Float[np.ndarray, "ggt l"]


@flax.struct.dataclass
class LayoutEncoder:
  """An encoder whose feature is the snippet; its tokens are as they were.

  Attributes:
    name: Tells encoder and fitted projections from others.
    encoder: Gives features and tokens.
    projections: As `fit` found them.
  """

  name: str = flax.struct.field(pytree_node=False)
  encoder: Any
  projections: Any

  @property
  def width(self) -> int:
    """Width of the snippet."""
    parts = self.projections.feature_basis, self.projections.layout_basis
    return sum(basis.shape[1] for basis in parts)

  def __call__(
    self, images: Float[Array, "b H W ch"]
  ) -> tuple[Float[Array, "b s"], Float[Array, "b n t"]]:
    """Snippets of length 1, half from each part, and the encoder's tokens."""
    features, tokens = self.encoder(images)
    fitted = self.projections
    what = _project(features, fitted.feature_mean, fitted.feature_basis)
    cells = layout(tokens)
    where = _project(cells, fitted.layout_mean, fitted.layout_basis)
    snippet = jnp.concatenate([_unit(what), _unit(where)], axis=1)
    return _unit(snippet), tokens


def _project(x: Array, mean: Array, basis: Array) -> Array:
  # TF32 or bfloat16 would give a bank other rows on each kind of machine.
  return jnp.dot(x - mean[None], basis, precision=jax.lax.Precision.HIGHEST)


def _unit(x: Float[Array, "b d"]) -> Float[Array, "b d"]:
  norms = jnp.linalg.norm(x, axis=1, keepdims=True)
  return x / jnp.maximum(norms, _SMALLEST)


def layout(tokens: Float[Array, "b n t"]) -> Float[Array, "b ggt"]:
  """Averages tokens of a square image over the cells of the grid.

  Raises:
    ValueError: If the number of tokens is no square.
  """
  side = round(tokens.shape[1] ** 0.5)
  if side**2 != tokens.shape[1]:
    raise ValueError(f"{tokens.shape[1]} tokens are no square map")
  image = tokens.reshape(len(tokens), side, side, -1)
  return resize.pool_grid(image, GRID).reshape(len(tokens), -1)


def fit(
  batches: Iterable[Float[np.ndarray, "_ H W ch"]],
  encoder: protocols.FeatureEncoder,
  width: int,
) -> Projections:
  """Fits the projections to images.

  Args:
    batches: Images in [-1, 1], in one pass, the first batch the
      largest.
    encoder: Gives features and tokens.
    width: Of the snippet: a third is for the feature, the rest for the layout.
  """
  features = layouts = size = None
  for images in batches:
    size = size or len(images)
    # The last batch is filled up: another shape would be compiled anew.
    filled = jnp.asarray(np.resize(images, (size, *images.shape[1:])))
    feature, cells = (np.asarray(x) for x in _parts(encoder, filled))
    features = features or pca.Sums(feature.shape[1])
    layouts = layouts or pca.Sums(cells.shape[1])
    features.add(feature[: len(images)])
    layouts.add(cells[: len(images)])
  none = pca.Sums(1)
  return Projections(
    *_padded((features or none).principal(width // 3), width // 3),
    *_padded((layouts or none).principal(width), width - width // 3),
  )


@jax.jit
def _parts(
  encoder: protocols.FeatureEncoder, images: Float[Array, "b H W ch"]
) -> tuple[Float[Array, "b d"], Float[Array, "b ggt"]]:
  """Features and layouts of images."""
  features, tokens = encoder(images)
  return features, layout(tokens)


def _padded(
  found: pca.Principal, width: int
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d k"]]:
  """Mean and basis of a width that does not depend on the images."""
  basis = found.basis[:, :width]
  # Few images vary in few directions: the others say nothing of any image.
  basis = np.pad(basis, ((0, 0), (0, width - basis.shape[1])))
  return found.mean.astype(np.float32), basis.astype(np.float32)
