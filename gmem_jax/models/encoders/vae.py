"""Autoencoders in whose latents the flow works: images <-> latents.

One network serves the three published tokenizers, which differ in widths, in
the number of latent channels and in where attention sits:

  va_vae   VA-VAE f16d32 (LightningDiT): 256 px -> 16 x 16 x 32
  mar_vae  MAR-VAE f16d16, no attention in the decoder's levels: 16 x 16 x 16
  sd_vae   Stable Diffusion's ft-mse, attention in the middle only: 32 x 32 x 4

    model = vae.VARIANTS["va_vae"]
    posterior = model.apply(variables, images, method="encode")
    latents = posterior.sample(key)
    images = model.apply(variables, latents, method="decode")

Letters: `b` batch, `h w` height and width, `c` channels.

Source: Rombach et al., arXiv 2112.10752 (the network and its KL posterior);
Yao et al., arXiv 2501.01423 (VA-VAE); Li et al., arXiv 2406.11838 (MAR).
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from gmem_jax.models.encoders import vae_layers

# The published networks clip log-variances to this range.
LOGVAR_MIN = -30.0
LOGVAR_MAX = 20.0


@flax.struct.dataclass
class Posterior:
  """Diagonal Gaussian over the latents of a batch of images.

  Attributes:
    logvar: Logarithm of the variance, in [-30, 20].

  Source: Kingma and Welling, arXiv 1312.6114.
  """

  mean: Float[Array, "b h w c"]
  logvar: Float[Array, "b h w c"]

  def sample(
    self,
    key: Key[Array, ""] | None = None,
    *,
    noise: Float[Array, "b h w c"] | None = None,
  ) -> Float[Array, "b h w c"]:
    """Draws one latent per image: mean + exp(logvar / 2) * noise.

    Args:
      key: Used for one draw of noise for the whole batch.
      noise: Standard normal noise to use instead, drawn with one key per image
        where latents must not depend on their batch.

    Raises:
      ValueError: If neither or both of key and noise are given.
    """
    if key is not None and noise is None:
      noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
    elif key is not None or noise is None:
      raise ValueError(
        "Posterior.sample takes either a key or noise, got"
        f" {'neither' if key is None else 'both'}"
      )
    return self.mean + jnp.exp(0.5 * self.logvar) * noise


class AutoencoderKL(nn.Module):
  """Convolutional autoencoder with a Gaussian posterior.

  Parameters, group norms, attention weights and the posterior are float32, and
  so are float32 products: on a TPU, which multiplies in bfloat16 unless asked
  otherwise, 48 % of the decoded pixels would be other ones.

  Attributes:
    ch: Channels of the first convolution.
    ch_mult: Channels of each level as multiples of `ch`, the image's own
      resolution first; each further level halves height and width.
    num_res_blocks: Per level of the encoder; the decoder has one more.
    encoder_attention: Levels of the encoder with attention.
    decoder_attention: The same of the decoder.
    latent_scale: Factor of the published flow models on these latents; 1 for
      those that normalise by statistics of their data set instead. Applied by
      the caller, not here.
    dtype: Of convolutions and projections.

  Source: Rombach et al., arXiv 2112.10752, section 3.1.
  """

  latent_channels: int
  ch: int = 128
  ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
  num_res_blocks: int = 2
  encoder_attention: tuple[int, ...] = ()
  decoder_attention: tuple[int, ...] = ()
  num_groups: int = 32
  latent_scale: float = 1.0
  dtype: DTypeLike = jnp.float32

  @property
  def downsampling(self) -> int:
    """Side of an image divided by the side of its latent."""
    return 2 ** (len(self.ch_mult) - 1)

  def setup(self):
    """Creates the four parts."""
    widths = tuple(self.ch * m for m in self.ch_mult)
    moments = 2 * self.latent_channels  # Means, then log-variances.
    blocks, common = self.num_res_blocks, (self.num_groups, self.dtype)
    self.encoder = vae_layers.VAEEncoder(
      moments, self.ch, widths, blocks, self.encoder_attention, *common
    )
    self.decoder = vae_layers.VAEDecoder(
      3, widths, blocks + 1, self.decoder_attention, *common
    )
    self.quant_conv = nn.Conv(moments, (1, 1), dtype=self.dtype)
    self.post_quant_conv = nn.Conv(
      self.latent_channels, (1, 1), dtype=self.dtype
    )

  def encode(self, images: Float[Array, "b _ _ 3"]) -> Posterior:
    """Encodes images in [-1, 1] to the posterior of their latents, in float32.

    Raises:
      ValueError: If a side is not a multiple of `downsampling`.
    """
    _, h, w, _ = images.shape
    if h % self.downsampling or w % self.downsampling:
      raise ValueError(
        f"images are {h} x {w} pixels, but this autoencoder needs sides that"
        f" are multiples of {self.downsampling}: crop or resize them first"
      )
    with jax.default_matmul_precision("highest"):
      moments = self.quant_conv(self.encoder(images)).astype(jnp.float32)
    mean, logvar = jnp.split(moments, 2, axis=-1)
    return Posterior(mean, jnp.clip(logvar, LOGVAR_MIN, LOGVAR_MAX))

  def decode(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b _ _ 3"]:
    """Decodes latents as `encode` gives them, not normalised for a flow.

    Returns:
      Float32 images in [-1, 1] up to the network's overshoot, not clamped;
      `downsampling` times as high and wide as the latents.

    Raises:
      ValueError: If the latents do not have `latent_channels` channels.
    """
    if latents.shape[-1] != self.latent_channels:
      raise ValueError(
        f"latents have {latents.shape[-1]} channels, but this autoencoder has"
        f" {self.latent_channels}; mean and log-variance are no latent, draw"
        " one with Posterior.sample"
      )
    with jax.default_matmul_precision("highest"):
      images = self.decoder(self.post_quant_conv(latents))
    return images.astype(jnp.float32)

  def __call__(self, images: Float[Array, "b h w 3"]) -> Array:
    """Reconstructs images from the means of their posteriors (for `init`)."""
    return self.decode(self.encode(images).mean)


@flax.struct.dataclass
class VAETokenizer:
  """An autoencoder with its weights, as a `protocols.Tokenizer`.

  Attributes:
    name: A key of `VARIANTS`.
  """

  # A pytree, so that jitted functions take the weights as arguments.
  name: str = flax.struct.field(pytree_node=False)
  network: AutoencoderKL = flax.struct.field(pytree_node=False)
  params: Any

  def posterior(self, images: Float[Array, "b _ _ 3"]) -> Posterior:
    """The posteriors of the images' latents; see `AutoencoderKL.encode`."""
    return cast(Posterior, self._apply(images, "encode"))

  def encode(self, images: Float[Array, "b _ _ 3"]) -> Float[Array, "b h w c"]:
    """The means of the images' posteriors."""
    return self.posterior(images).mean

  def decode(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b _ _ 3"]:
    """Latents to images; see `AutoencoderKL.decode`."""
    return cast(jax.Array, self._apply(latents, "decode"))

  def _apply(self, x: jax.Array, method: str) -> Any:
    return self.network.apply({"params": self.params}, x, method=method)


VARIANTS: Mapping[str, AutoencoderKL] = MappingProxyType(
  {
    "va_vae": AutoencoderKL(
      latent_channels=32, encoder_attention=(4,), decoder_attention=(4,)
    ),
    "mar_vae": AutoencoderKL(latent_channels=16, encoder_attention=(4,)),
    "sd_vae": AutoencoderKL(
      latent_channels=4, ch_mult=(1, 2, 4, 4), latent_scale=0.18215
    ),
  }
)
