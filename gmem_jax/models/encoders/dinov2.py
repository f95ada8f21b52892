"""DINOv2: the frozen vision transformer whose features GMem remembers.

The class token of an image is its memory snippet; the patch tokens are the
targets of the representation loss. GMem's preprocessing is part of the
definition of these features: ImageNet normalisation, then a bicubic resize from
256 to 224 pixels, so that 16 x 16 patches of 14 pixels align with the 16 x 16
latents.

Letters: `b` batch, `h w` height and width, `n` patches, `d` width, `l` layers.

Source: Oquab et al., arXiv 2304.07193 (the network); GMem, arXiv 2412.08781,
and REPA, arXiv 2410.06940 (its preprocessing here).
"""

import functools
from typing import Any

import einops
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gmem_jax.models.encoders import resize

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Every 256 pixels of an image become 224 = 16 * 14 pixels for the network.
IMAGE_UNIT = 256
NETWORK_UNIT = 224
# DINOv2's own, from when its authors kept a resampling from rounding down.
POSITION_OFFSET = 0.1


def preprocess(images: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2 3"]:
  """Prepares images for the network as GMem does.

  Args:
    images: Square, at least 256 pixels wide, in [-1, 1].

  Returns:
    Images of 224 * (w // 256) pixels a side, normalised with ImageNet's mean
    and standard deviation.

  Raises:
    ValueError: If the images are not square or too small.
  """
  _, h, w, _ = images.shape
  if h != w or w < IMAGE_UNIT:
    raise ValueError(
      f"DINOv2 got images of {h} x {w} pixels; they must be square and at"
      f" least {IMAGE_UNIT} pixels wide: crop them, or set"
      " config.encoder.image_size"
    )
  mean = jnp.asarray(IMAGENET_MEAN, jnp.float32).reshape(1, 1, 1, 3)
  std = jnp.asarray(IMAGENET_STD, jnp.float32).reshape(1, 1, 1, 3)
  side = NETWORK_UNIT * (w // IMAGE_UNIT)
  images = (images.astype(jnp.float32) + 1) / 2
  # Neither antialiased nor clamped, as for the features of published banks.
  return resize.bicubic((images - mean) / std, (side, side))


class DINOv2Block(nn.Module):
  """Pre-norm block with LayerScale on both branches; fields as in `DINOv2`."""

  width: int
  heads: int
  hidden: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
    """Maps float32 tokens to float32 tokens."""
    y = self._attention(_layer_norm("norm1")(tokens))
    tokens = tokens + self._layer_scale(y, "ls1")
    y = nn.Dense(self.hidden, dtype=self.dtype, name="fc1")(
      _layer_norm("norm2")(tokens)
    )
    # Exact, as published; the flow transformers have the tanh approximation.
    y = nn.gelu(y, approximate=False)
    y = nn.Dense(self.width, dtype=self.dtype, name="fc2")(y)
    return tokens + self._layer_scale(y, "ls2")

  def _attention(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
    qkv = nn.Dense(3 * self.width, dtype=self.dtype, name="qkv")(x)
    q, k, v = einops.rearrange(
      qkv, "b n (three heads d) -> three b n heads d", three=3, heads=self.heads
    )
    logits = jnp.einsum(
      "bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32
    )
    weights = nn.softmax(logits * (q.shape[-1] ** -0.5)).astype(v.dtype)
    y = jnp.einsum("bhnm,bmhd->bnhd", weights, v)
    y = einops.rearrange(y, "b n heads d -> b n (heads d)")
    return nn.Dense(self.width, dtype=self.dtype, name="proj")(y)

  def _layer_scale(
    self, x: Float[Array, "b n d"], name: str
  ) -> Float[Array, "b n d"]:
    gamma = self.param(name, nn.initializers.ones, (self.width,))
    return x.astype(jnp.float32) * gamma[None, None]


class DINOv2(nn.Module):
  """The network without registers; the defaults are ViT-B/14.

  Attributes:
    width: Width of the tokens, a multiple of `heads`.
    patch: Side of a patch in pixels; divides 224.
    hidden: Width of the MLP; None for 4 * width.
    table: Side of the square table of positions.
    position_grid: Side of a grid to which the table is resampled first, and
      from there to the image's patches: 16 in GMem's code. None for once, as
      in REPA's. Both are the same for images of 256 pixels, whose patches are
      16 x 16; GMem published no features of others.
    dtype: Of the matmuls; norms, softmax, the residual stream and the results
      are float32.
  """

  width: int = 768
  depth: int = 12
  heads: int = 12
  patch: int = 14
  hidden: int | None = None
  table: int = 37
  position_grid: int | None = None
  dtype: DTypeLike = jnp.float32

  def setup(self) -> None:
    """Creates the parameters, those of all blocks stacked along one axis."""
    if self.width % self.heads:
      raise ValueError(
        f"width={self.width}: must be a multiple of heads={self.heads}"
      )
    if NETWORK_UNIT % self.patch:
      raise ValueError(f"patch={self.patch}: must divide {NETWORK_UNIT} pixels")
    normal = nn.initializers.normal(0.02)
    positions = 1 + self.table**2
    self.cls_token = self.param("cls_token", normal, (1, 1, self.width))
    self.pos_embed = self.param("pos_embed", normal, (1, positions, self.width))
    self.patch_embed = nn.Conv(
      self.width,
      (self.patch, self.patch),
      strides=self.patch,
      padding="VALID",
      dtype=self.dtype,
    )
    self.blocks = self.param("blocks", self._init_blocks)
    self.norm = _layer_norm()

  def __call__(
    self, images: Float[Array, "b h w 3"]
  ) -> tuple[Float[Array, "b d"], Float[Array, "b n d"]]:
    """Features of images, see `preprocess`.

    Returns:
      (cls, tokens): the class token and the patch tokens, row by row, after the
      final norm, float32, not L2-normalised. 256 pixels give 16 * 16 tokens.
    """
    block = self._block()

    def step(tokens, params):
      return block.apply({"params": params}, tokens), None

    # TF32, or a TPU's bfloat16, would give other memories than the published.
    with jax.default_matmul_precision("highest"):
      tokens = self.embed(preprocess(images))
      # A scan: the network is frozen and keeps no activations, so unrolling
      # would only make it slower to compile.
      tokens, _ = jax.lax.scan(step, tokens, self.blocks)
    tokens = self.norm(tokens)
    return tokens[:, 0], tokens[:, 1:]

  def embed(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b n2 d"]:
    """Class token and patch tokens with their positions, float32.

    Args:
      pixels: Preprocessed images whose sides are multiples of `patch`.
    """
    patches = self.patch_embed(pixels).astype(jnp.float32)
    b, rows, columns, d = patches.shape
    patches = patches.reshape(b, rows * columns, d)
    cls = jnp.broadcast_to(self.cls_token, (b, 1, d))
    tokens = jnp.concatenate([cls, patches], axis=1)
    return tokens + self.positions(rows, columns)

  def positions(self, rows: int, columns: int) -> Float[Array, "1 n2 d"]:
    """Positions of the class token and of a grid of patches."""
    # The patches' are resampled with antialiasing, though the pixels' are not;
    # both as published. The class token's is kept.
    cls, grid = self.pos_embed[:, :1], self.pos_embed[:, 1:]
    grid = grid.reshape(1, self.table, self.table, self.width)
    if self.position_grid is None:
      grid = resize.bicubic_antialias(grid, (rows, columns))
    else:
      side = self.position_grid
      grid = resize.bicubic_antialias(grid, (side, side))
      if grid.shape[1:3] != (rows, columns):
        grid = resize.bicubic_offset(grid, (rows, columns), POSITION_OFFSET)
    return jnp.concatenate([cls, grid.reshape(1, -1, self.width)], axis=1)

  def _block(self) -> DINOv2Block:
    hidden = 4 * self.width if self.hidden is None else self.hidden
    # Detached (parent None): its parameters are slices of the stacked ones.
    return DINOv2Block(self.width, self.heads, hidden, self.dtype, parent=None)

  def _init_blocks(self, key: jax.Array) -> Any:
    block, tokens = self._block(), jnp.zeros((1, 1, self.width))
    keys = jax.random.split(key, self.depth)
    return jax.vmap(lambda key: block.init(key, tokens)["params"])(keys)


@flax.struct.dataclass
class DINOv2Encoder:
  """The network with its weights, as one function of images.

  Attributes:
    name: Identifies the weights, so that a bank records which encoder made it.
  """

  # A pytree, so that jitted functions take the weights as arguments.

  name: str = flax.struct.field(pytree_node=False)
  network: DINOv2 = flax.struct.field(pytree_node=False)
  params: Any

  @property
  def width(self) -> int:
    """Width of the feature."""
    return self.network.width

  def __call__(
    self, images: Float[Array, "b h w 3"]
  ) -> tuple[Float[Array, "b d"], Float[Array, "b n d"]]:
    """Features of images; see `DINOv2`."""
    return _apply(self.network, self.params, images)


@functools.partial(jax.jit, static_argnums=0)
def _apply(network: DINOv2, params: Any, images: jax.Array) -> Any:
  return network.apply({"params": params}, images)


def _layer_norm(name: str | None = None) -> nn.LayerNorm:
  # The fast variance, E[x^2] - E[x]^2, cancels where the mean is large.
  return nn.LayerNorm(
    epsilon=1e-6, dtype=jnp.float32, use_fast_variance=False, name=name
  )
