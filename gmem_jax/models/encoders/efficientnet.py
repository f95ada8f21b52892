"""EfficientNet-Lite0: a small network trained on ImageNet, for any image size.

A convolutional classifier of 4.7 million parameters whose published weights
come with a Python package. Its pooled feature says what an image shows; an
earlier map says where. It reads images at the size that they have, as pooling
comes last; only small ones are enlarged.

Letters: `b` batch, `h w` height and width, `c` channels.

Source: Tan and Le, arXiv 1905.11946 (the network); EfficientNet-Lite, the form
of it without squeeze-and-excitation and with ReLU6, in TensorFlow's
repository tpu.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gmem_jax.models.encoders import resize

STEM_WIDTH, HEAD_WIDTH, CLASSES = 32, 1280, 1000
# Expansion, output channels, blocks, side of the kernel, stride of the first.
STAGES = (
  (1, 16, 1, 3, 1),
  (6, 24, 2, 3, 2),
  (6, 40, 2, 5, 2),
  (6, 80, 3, 3, 2),
  (6, 112, 3, 5, 1),
  (6, 192, 4, 5, 2),
  (6, 320, 1, 3, 1),
)
# The last stage at a sixteenth of the image's side: beyond it little is left of
# where things are.
MAP_STAGE = 4
MAP_WIDTH = STAGES[MAP_STAGE][1]
# Pixels of the shorter side of the smallest image that the encoder reads as it
# is; smaller ones are enlarged. At 64 the nearest emoji is of the same kind in
# 35 % of cases, enlarged from 64 in 42 %, drawn at 128 in 43 %.
SMALLEST = 128
# Sums of hundreds of products: TF32 and bfloat16 would show in the features.
_PRECISION = jax.lax.Precision.HIGHEST


class EfficientNetActivations(NamedTuple):
  """Outputs of the network for a batch of images.

  Attributes:
    features: Global average pool of the last convolution.
    logits: Scores of ImageNet's 1000 classes, in the usual order.
    map: Output of the last stage whose side is a sixteenth of the image's,
      rounded up.
  """

  # All at once: under jit, outputs that the caller drops cost nothing.

  features: Float[Array, "b 1280"]
  logits: Float[Array, "b 1000"]
  map: Float[Array, "b h w 112"]


def preprocess(images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
  """Images in [-1, 1] as the network takes them: (x - 127) / 128 of bytes."""
  return (127.5 * (images.astype(jnp.float32) + 1) - 127) / 128


class EfficientNetLayer(nn.Module):
  """Convolution, batch norm with its running statistics, ReLU6 unless linear.

  Attributes:
    width: Output channels.
    size: Side of the kernel.
    depthwise: Each channel is convolved on its own.
  """

  width: int
  size: int = 1
  stride: int = 1
  depthwise: bool = False
  linear: bool = False

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
    """Applies the layer, with as many pixels around as "SAME" adds."""
    ones, zeros = nn.initializers.ones, nn.initializers.zeros
    shape = (x.shape[-1], self.width)
    if self.size > 1:
      inputs = 1 if self.depthwise else x.shape[-1]
      shape = (self.size, self.size, inputs, self.width)
    kernel = self.param("kernel", nn.initializers.he_normal(), shape)
    scale = self.param("scale", ones, (self.width,))
    bias = self.param("bias", zeros, (self.width,))
    mean = self.param("mean", zeros, (self.width,))
    var = self.param("var", ones, (self.width,))
    # At inference the norm is an affine map of each channel: folded into the
    # kernel and a bias, it needs no pass over the map.
    scale = scale / jnp.sqrt(var + 1e-3)
    kernel = kernel * jnp.expand_dims(scale, range(kernel.ndim - 1))
    y = self._convolve(x, kernel) + (bias - mean * scale)[None, None, None]
    return y if self.linear else nn.relu6(y)

  def _convolve(self, x: Array, kernel: Array) -> Array:
    if self.size == 1:
      return jnp.dot(x, kernel, precision=_PRECISION)
    if self.depthwise:
      return depthwise(x, kernel[:, :, 0], self.stride)
    return jax.lax.conv_general_dilated(
      x,
      kernel,
      (self.stride, self.stride),
      "SAME",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      precision=_PRECISION,
    )


def depthwise(
  x: Float[Array, "b h w c"], kernel: Float[Array, "k k c"], stride: int
) -> Float[Array, "b h2 w2 c"]:
  """Convolves each channel with its own kernel, padded as "SAME" is."""
  # As sums of shifted images: on CPU four times as fast as XLA's convolution
  # with as many groups as channels.
  size = kernel.shape[0]
  sides, strides = x.shape[1:3], (stride, stride)
  pads = jax.lax.padtype_to_pads(sides, (size, size), strides, "SAME")
  x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
  rows, columns = (math.ceil(n / stride) for n in sides)
  total = jnp.zeros((), x.dtype)
  for i in range(size):
    for j in range(size):
      shifted = x[
        :,
        i : i + stride * (rows - 1) + 1 : stride,
        j : j + stride * (columns - 1) + 1 : stride,
      ]
      total = total + shifted * kernel[i, j][None, None, None]
  return total


class InvertedResidual(nn.Module):
  """A block: expand, convolve each channel, project.

  Attributes:
    width: Output channels.
    expansion: Times the input's channels that the middle has.
    size: Side of the kernel.
  """

  width: int
  expansion: int
  size: int
  stride: int

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
    """Applies the block; input and output are added where shapes are equal."""
    middle, y = self.expansion * x.shape[-1], x
    if self.expansion > 1:
      y = EfficientNetLayer(middle, name="expand")(y)
    y = EfficientNetLayer(
      middle, self.size, self.stride, depthwise=True, name="depthwise"
    )(y)
    y = EfficientNetLayer(self.width, linear=True, name="project")(y)
    return x + y if self.stride == 1 and x.shape == y.shape else y


class EfficientNetLite0(nn.Module):
  """The network, at inference."""

  @nn.compact
  def __call__(
    self, images: Float[Array, "b h w 3"]
  ) -> EfficientNetActivations:
    """Float32 features, logits and a map of images in [-1, 1] of any size."""
    x = preprocess(images)
    x = EfficientNetLayer(STEM_WIDTH, 3, 2, name="stem")(x)
    index, maps = 0, []
    for expansion, width, blocks, size, stride in STAGES:
      for i in range(blocks):
        block = InvertedResidual(
          width, expansion, size, 1 if i else stride, name=f"blocks_{index}"
        )
        x, index = block(x), index + 1
      maps.append(x)
    x = EfficientNetLayer(HEAD_WIDTH, name="head")(x)
    features = x.mean(axis=(1, 2))
    logits = nn.Dense(CLASSES, precision=_PRECISION, name="fc")(features)
    return EfficientNetActivations(features, logits, maps[MAP_STAGE])


@flax.struct.dataclass
class EfficientNetEncoder:
  """The network with its weights, as one function of images.

  Attributes:
    name: Identifies the weights, so that a bank records which encoder made it.
  """

  # A pytree, so that jitted functions take the weights as arguments.

  name: str = flax.struct.field(pytree_node=False)
  params: Any
  width = HEAD_WIDTH

  def __call__(
    self, images: Float[Array, "b h w 3"]
  ) -> tuple[Float[Array, "b d"], Float[Array, "b n 112"]]:
    """Pooled features [b, 1280] of images in [-1, 1], and the map's pixels."""
    activations = apply(self.params, enlarge(images))
    tokens = activations.map.reshape(len(images), -1, MAP_WIDTH)
    return activations.features, tokens


def enlarge(images: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2 3"]:
  """Small images with a shorter side of `SMALLEST` pixels, others unchanged."""
  shorter = min(images.shape[1:3])
  if shorter >= SMALLEST:
    return images
  height, width = (round(n * SMALLEST / shorter) for n in images.shape[1:3])
  return resize.bilinear(images, (height, width))


@jax.jit
def apply(
  params: Any, images: Float[Array, "b h w 3"]
) -> EfficientNetActivations:
  """Runs the network with converted parameters on images in [-1, 1]."""
  return EfficientNetLite0().apply({"params": params}, images)  # type: ignore
