"""A linear tokenizer: the principal components of image patches.

It is fitted to a run's own images in seconds and needs no download. A latent
pixel is a patch in the directions in which patches vary most; decoding is exact
but for the directions left out.

The channels are mixtures of these directions, and so all vary about as much. A
channel for each direction would be brought to the same scale by the statistics
of the latents, and the loss would count faint detail as much as shapes and
colours.

Letters: `b` batch, `H W ch` image, `p` side of a patch, `h w` patches, `d`
numbers of a patch (p p ch), `c` latent channels.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import einops
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft
from jaxtyping import Array, Float

from gmem_jax.models.encoders import pca


class FittedPatches(NamedTuple):
  """What `fit` finds.

  Attributes:
    mean: float32 [d], of all patches.
    basis: float32 [d c], orthonormal.
    kept: Share of the patches' variance in these directions.
  """

  mean: np.ndarray
  basis: np.ndarray
  kept: float


@flax.struct.dataclass
class PatchPCATokenizer:
  """The fitted directions, as a `protocols.Tokenizer`.

  Attributes:
    name: "patch_pca".
    patch: Side of a patch in pixels.
    mean: As in `FittedPatches`.
    basis: As there.
  """

  name: str = flax.struct.field(pytree_node=False)
  patch: int = flax.struct.field(pytree_node=False)
  mean: Any
  basis: Any

  def encode(self, images: Float[Array, "b H W ch"]) -> Float[Array, "b h w c"]:
    """Images whose sides are multiples of the patch's to latents."""
    patches = _cut(images, self.patch) - self.mean[None, None, None]
    return jnp.dot(patches, self.basis, precision=jax.lax.Precision.HIGHEST)

  def decode(
    self, latents: Float[Array, "b h w c"]
  ) -> Float[Array, "b H W ch"]:
    """Latents to images; see `protocols.Tokenizer`."""
    patches = jnp.dot(
      latents.astype(jnp.float32),
      self.basis.T,
      precision=jax.lax.Precision.HIGHEST,
    )
    return einops.rearrange(
      patches + self.mean[None, None, None],
      "b h w (y x ch) -> b (h y) (w x) ch",
      y=self.patch,
      x=self.patch,
    )


def _cut(images: Any, patch: int) -> Any:
  """Patches of images, a row of numbers each: [b h w d]."""
  return einops.rearrange(
    images, "b (h y) (w x) ch -> b h w (y x ch)", y=patch, x=patch
  )


def mixture(channels: int) -> Float[np.ndarray, "c c"]:
  """Orthonormal; every column has about as much of every row."""
  return np.asarray(scipy.fft.dct(np.eye(channels), norm="ortho", axis=0))


def fit(
  batches: Iterable[Float[np.ndarray, "_ H W ch"]], patch: int, channels: int
) -> FittedPatches:
  """Finds the directions in which the patches of images vary most.

  Args:
    batches: Images in [-1, 1], in one pass; the last may be of fewer.
    patch: Side of a patch; divides the images' sides.
    channels: Number of directions.

  Raises:
    ValueError: If the patches vary in fewer directions.
  """
  sums = None
  for images in batches:
    patches = _cut(np.asarray(images), patch)
    patches = patches.reshape(-1, patches.shape[-1])
    sums = sums or pca.Sums(patches.shape[-1])
    sums.add(patches)
  found = (sums or pca.Sums(1)).principal(channels)
  varying = found.basis.shape[1]
  if channels > varying:
    raise ValueError(
      f"config.encoder.tokenizer_channels={channels}: patches of"
      f" config.encoder.tokenizer_patch={patch} pixels vary in {varying}"
      " directions only in these images"
    )
  return FittedPatches(
    found.mean.astype(np.float32),
    (found.basis @ mixture(channels)).astype(np.float32),
    float(found.variances.sum() / found.total),
  )
