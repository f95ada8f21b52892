"""The Inception network behind FID, sFID and Inception Score.

It is the 2015 ImageNet graph that every published FID uses, in the form of its
PyTorch conversion. Other libraries' InceptionV3 differs: average pools here do
not count their padding, the last block pools by maximum, and there are 1008
classes.

Two definitions of its input are in use, and their scores are not comparable:

  pytorch_fid  bilinear between pixel centres, then 2 x - 1 of x in [0, 1]
  adm          bilinear of TensorFlow 1 (moved by up to half a pixel), then
               (x - 128) / 128 of x in [0, 255]; reference statistics from the
               ADM suite (`VIRTUAL_*.npz`) and the numbers in papers use it

Letters: `b` batch, `h w` height and width, `c` channels.

Source: Szegedy et al., arXiv 1512.00567 (the network); Heusel et al., arXiv
1706.08500 (FID); Nash et al., arXiv 2103.03841 (sFID).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from gmem_jax.models.encoders import resize

INPUT_SIDE = 299
PREPROCESSING = ("pytorch_fid", "adm")
# sFID reads the first channels of a 17 x 17 map: 7 * 17 * 17 = 2023 numbers.
SPATIAL_CHANNELS = 7


class Activations(NamedTuple):
  """Outputs of the network for a batch of images.

  Attributes:
    features: Global average pool of the last block, for FID.
    logits: Class scores, bias included. The Inception Score of the ADM suite
      leaves the bias out: subtract `params["fc"]["bias"]`.
    spatial: First 7 channels after ReLU of the 1x1 convolution in block
      Mixed_6d, the node `mixed_6/conv:0` of the 2015 graph, for sFID. The ADM
      suite flattens it in this order: rows, columns, channels.
    pool1: Map after the first maximum pool, like the next two a layer of which
      FIDs are published.
    pool2: Map after the second maximum pool.
    mixed_6e: Map after the last 17 x 17 block.
  """

  # All at once: under jit, outputs that the caller drops cost nothing.

  features: Float[Array, "b 2048"]
  logits: Float[Array, "b 1008"]
  spatial: Float[Array, "b 17 17 7"]
  pool1: Float[Array, "b 73 73 64"]
  pool2: Float[Array, "b 35 35 192"]
  mixed_6e: Float[Array, "b 17 17 768"]


def preprocess(
  images: Num[Array, "b h w 3"], preprocessing: str = "pytorch_fid"
) -> Float[Array, "b 299 299 3"]:
  """Resizes images to 299 x 299 and scales them to about [-1, 1].

  Args:
    images: Any size; uint8, or floating point in [0, 1].
    preprocessing: "pytorch_fid" or "adm", see the module.

  Raises:
    ValueError: If `preprocessing` is unknown, or images are neither uint8 nor
      floating point: their range would be a guess.
  """
  if preprocessing not in PREPROCESSING:
    raise ValueError(
      f"preprocessing={preprocessing!r}: must be one of {PREPROCESSING}"
    )
  if images.dtype == jnp.uint8:
    images = images.astype(jnp.float32) / 255
  elif not jnp.issubdtype(images.dtype, jnp.floating):
    raise ValueError(
      f"images are {images.dtype}; they must be uint8, or floating point in"
      " [0, 1]"
    )
  size = (INPUT_SIDE, INPUT_SIDE)
  if preprocessing == "adm":
    return (255 * resize.bilinear_corner(images, size) - 128) / 128
  return 2 * resize.bilinear(images, size) - 1


class ConvNorm(nn.Module):
  """Convolution, batch norm with its running statistics, ReLU."""

  width: int
  size: tuple[int, int]
  stride: int = 1
  padding: str = "SAME"

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
    """Applies the layer."""
    ones, zeros = nn.initializers.ones, nn.initializers.zeros
    kernel = self.param(
      "kernel",
      nn.initializers.he_normal(),
      (*self.size, x.shape[-1], self.width),
    )
    scale = self.param("scale", ones, (self.width,))
    bias = self.param("bias", zeros, (self.width,))
    mean = self.param("mean", zeros, (self.width,))
    var = self.param("var", ones, (self.width,))
    # At inference the norm is an affine map of each channel: folded into the
    # kernel and a bias, it needs no pass over the map.
    scale = scale / jnp.sqrt(var + 1e-3)
    y = jax.lax.conv_general_dilated(
      x,
      kernel * scale[None, None, None],
      (self.stride, self.stride),
      self.padding,
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      # Scores are compared in their second decimal; TF32 would show there.
      precision=jax.lax.Precision.HIGHEST,
    )
    return nn.relu(y + (bias - mean * scale)[None, None, None])


class Mixed(nn.Module):
  """A block: concatenates the branches that a function makes of its input."""

  # One of the functions below; the layers it creates belong to the block.
  branches: Callable[[Array], list[Array]]

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
    """Concatenates the branches."""
    return jnp.concatenate(self.branches(x), axis=-1)


def _mixed(name: str, branches: Callable, **settings: Any) -> Mixed:
  return Mixed(functools.partial(branches, **settings), name=name)


def _at_35(x: Array, pool_width: int) -> list[Array]:
  """Branches at 35 x 35: of 1x1, 5x5, 3x3 twice, and a pool."""
  return [
    _chain(x, ("branch1x1", 64, 1, 1)),
    _chain(x, ("branch5x5_1", 48, 1, 1), ("branch5x5_2", 64, 5, 5)),
    _chain(
      x,
      ("branch3x3dbl_1", 64, 1, 1),
      ("branch3x3dbl_2", 96, 3, 3),
      ("branch3x3dbl_3", 96, 3, 3),
    ),
    _chain(_average_pool(x), ("branch_pool", pool_width, 1, 1)),
  ]


def _from_35_to_17(x: Array) -> list[Array]:
  double = _chain(x, ("branch3x3dbl_1", 64, 1, 1), ("branch3x3dbl_2", 96, 3, 3))
  return [
    _reduce(x, "branch3x3", 384),
    _reduce(double, "branch3x3dbl_3", 96),
    _halve(x),
  ]


def _at_17(x: Array, width: int) -> list[Array]:
  """Branches at 17 x 17: of 1x1, 7x7 factored once and twice, and a pool."""
  return [
    _chain(x, ("branch1x1", 192, 1, 1)),
    _chain(
      x,
      ("branch7x7_1", width, 1, 1),
      ("branch7x7_2", width, 1, 7),
      ("branch7x7_3", 192, 7, 1),
    ),
    _chain(
      x,
      ("branch7x7dbl_1", width, 1, 1),
      ("branch7x7dbl_2", width, 7, 1),
      ("branch7x7dbl_3", width, 1, 7),
      ("branch7x7dbl_4", width, 7, 1),
      ("branch7x7dbl_5", 192, 1, 7),
    ),
    _chain(_average_pool(x), ("branch_pool", 192, 1, 1)),
  ]


def _from_17_to_8(x: Array) -> list[Array]:
  three = _chain(x, ("branch3x3_1", 192, 1, 1))
  seven = _chain(
    x,
    ("branch7x7x3_1", 192, 1, 1),
    ("branch7x7x3_2", 192, 1, 7),
    ("branch7x7x3_3", 192, 7, 1),
  )
  return [
    _reduce(three, "branch3x3_2", 320),
    _reduce(seven, "branch7x7x3_4", 192),
    _halve(x),
  ]


def _at_8(x: Array, pool: Callable[[Array], Array]) -> list[Array]:
  """Branches at 8 x 8: 3x3 ends in 1x3 beside 3x1."""
  three = _chain(x, ("branch3x3_1", 384, 1, 1))
  double = _chain(
    x, ("branch3x3dbl_1", 448, 1, 1), ("branch3x3dbl_2", 384, 3, 3)
  )
  return [
    _chain(x, ("branch1x1", 320, 1, 1)),
    _chain(three, ("branch3x3_2a", 384, 1, 3)),
    _chain(three, ("branch3x3_2b", 384, 3, 1)),
    _chain(double, ("branch3x3dbl_3a", 384, 1, 3)),
    _chain(double, ("branch3x3dbl_3b", 384, 3, 1)),
    _chain(pool(x), ("branch_pool", 192, 1, 1)),
  ]


def _chain(x: Array, *layers: tuple[str, int, int, int]) -> Array:
  """ConvNorms in turn: (name, width, kernel height, kernel width) each."""
  for name, width, height, across in layers:
    x = ConvNorm(width, (height, across), name=name)(x)
  return x


def _reduce(x: Array, name: str, width: int) -> Array:
  return ConvNorm(width, (3, 3), 2, "VALID", name=name)(x)


def _halve(x: Array) -> Array:
  return nn.max_pool(x, (3, 3), strides=(2, 2))


def _average_pool(x: Array) -> Array:
  """3x3 average that divides by the number of pixels inside the image."""
  return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def _max_pool(x: Array) -> Array:
  return nn.max_pool(x, (3, 3), padding="SAME")


class InceptionV3(nn.Module):
  """The network; parameters have the names of the PyTorch file.

  Attributes:
    preprocessing: "pytorch_fid" (GMem's own script) or "adm" (the ADM suite).
  """

  preprocessing: str = "pytorch_fid"

  @nn.compact
  def __call__(self, images: Num[Array, "b h w 3"]) -> Activations:
    """Float32 features, logits and maps of images; see `preprocess`."""
    x = preprocess(images, self.preprocessing)
    x = ConvNorm(32, (3, 3), 2, "VALID", name="Conv2d_1a_3x3")(x)
    x = ConvNorm(32, (3, 3), padding="VALID", name="Conv2d_2a_3x3")(x)
    x = ConvNorm(64, (3, 3), name="Conv2d_2b_3x3")(x)
    pool1 = _halve(x)
    x = ConvNorm(80, (1, 1), name="Conv2d_3b_1x1")(pool1)
    x = ConvNorm(192, (3, 3), padding="VALID", name="Conv2d_4a_3x3")(x)
    pool2 = _halve(x)
    x = _mixed("Mixed_5b", _at_35, pool_width=32)(pool2)
    x = _mixed("Mixed_5c", _at_35, pool_width=64)(x)
    x = _mixed("Mixed_5d", _at_35, pool_width=64)(x)
    x = _mixed("Mixed_6a", _from_35_to_17)(x)
    x = _mixed("Mixed_6b", _at_17, width=128)(x)
    x = _mixed("Mixed_6c", _at_17, width=160)(x)
    x = _mixed("Mixed_6d", _at_17, width=160)(x)
    # The 1x1 branch comes first in the concatenation.
    spatial = x[..., :SPATIAL_CHANNELS]
    mixed_6e = _mixed("Mixed_6e", _at_17, width=192)(x)
    x = _mixed("Mixed_7a", _from_17_to_8)(mixed_6e)
    x = _mixed("Mixed_7b", _at_8, pool=_average_pool)(x)
    # By maximum instead of average, apparently by a slip that every FID has
    # since kept.
    x = _mixed("Mixed_7c", _at_8, pool=_max_pool)(x)
    features = x.mean(axis=(1, 2))
    logits = nn.Dense(1008, precision=jax.lax.Precision.HIGHEST, name="fc")(
      features
    )
    return Activations(features, logits, spatial, pool1, pool2, mixed_6e)
