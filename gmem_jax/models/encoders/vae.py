"""Autoencoders whose latents the flow models live in: images <-> latents.

One network serves the three published tokenizers, which differ in widths, in
the number of latent channels and in where attention sits:

  va_vae   VA-VAE f16d32 (LightningDiT): 256 px -> 16 x 16 x 32
  mar_vae  MAR-VAE f16d16, no attention in the decoder's levels: 16 x 16 x 16
  sd_vae   Stable Diffusion's ft-mse, attention in the middle only: 32 x 32 x 4

    model = vae.VARIANTS["va_vae"]
    posterior = model.apply(variables, images, method="encode")
    latents = posterior.sample(key)
    images = model.apply(variables, latents, method="decode")

Shapes: b batch, h w height and width, c channels. Layout is NHWC.

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

# The published networks keep log-variances in this range.
LOGVAR_MIN = -30.0
LOGVAR_MAX = 20.0


@flax.struct.dataclass
class Posterior:
  """Diagonal Gaussian over the latents of a batch of images.

  Attributes:
    mean: Mean of every latent element.
    logvar: Logarithm of its variance, in [LOGVAR_MIN, LOGVAR_MAX].

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
      key: Random key, used for one draw of noise for the whole batch.
      noise: Standard normal noise to use instead. Draw it with one key per
        image where latents must not depend on the batch they came in.

    Returns:
      The latents.

    Raises:
      ValueError: If neither or both of key and noise are given.
    """
    if key is not None and noise is None:
      noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
    elif key is not None or noise is None:
      raise ValueError(
        "Posterior.sample takes either a key or noise, got "
        + ("neither" if key is None else "both")
      )
    return self.mean + jnp.exp(0.5 * self.logvar) * noise


class AutoencoderKL(nn.Module):
  """Convolutional autoencoder with a Gaussian posterior.

  Parameters are float32; group norms, attention weights and the posterior are
  computed in float32 whatever `dtype` is.

  Attributes:
    latent_channels: Channels of a latent.
    ch: Channels of the first convolution.
    ch_mult: Channels of each level as multiples of `ch`, the image's own
      resolution first; each further level halves height and width.
    num_res_blocks: ResBlocks per level of the encoder; the decoder has one
      more.
    encoder_attention: Levels of the encoder with attention.
    decoder_attention: Levels of the decoder with attention.
    num_groups: Groups of every group norm.
    latent_scale: What published flow models on these latents multiply them
      by. `encode` and `decode` leave it to the caller, since others normalise
      by per-channel statistics of their data set instead (then 1).
    dtype: Compute dtype of convolutions and projections.

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
    """Names the four parts as the published files do."""
    widths = tuple(self.ch * m for m in self.ch_mult)
    moments = 2 * self.latent_channels
    self.encoder = vae_layers.VAEEncoder(
      moments,
      self.ch,
      widths,
      self.num_res_blocks,
      self.encoder_attention,
      self.num_groups,
      self.dtype,
    )
    self.decoder = vae_layers.VAEDecoder(
      3,
      widths,
      self.num_res_blocks + 1,
      self.decoder_attention,
      self.num_groups,
      self.dtype,
    )
    self.quant_conv = nn.Conv(moments, (1, 1), dtype=self.dtype)
    self.post_quant_conv = nn.Conv(
      self.latent_channels, (1, 1), dtype=self.dtype
    )

  def encode(self, images: Float[Array, "b _ _ 3"]) -> Posterior:
    """Encodes images.

    Args:
      images: Pixels in [-1, 1]; height and width are multiples of
        `downsampling`.

    Returns:
      Posterior of the latents, float32, [b, h / f, w / f, latent_channels]
      with f = `downsampling`.

    Raises:
      ValueError: If a side is not a multiple of `downsampling`.
    """
    _, h, w, _ = images.shape
    if h % self.downsampling or w % self.downsampling:
      raise ValueError(
        f"images are {h} x {w} pixels, but this autoencoder needs sides that "
        f"are multiples of {self.downsampling}: crop or resize them first"
      )
    moments = self.quant_conv(self.encoder(images)).astype(jnp.float32)
    mean, logvar = jnp.split(moments, 2, axis=-1)
    return Posterior(mean, jnp.clip(logvar, LOGVAR_MIN, LOGVAR_MAX))

  def decode(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b _ _ 3"]:
    """Decodes latents.

    Args:
      latents: What `encode` gives, that is not normalised for a flow model.

    Returns:
      Images, float32: pixels in [-1, 1] up to the network's overshoot, not
      clamped; `downsampling` times as high and wide as the latents.

    Raises:
      ValueError: If the latents do not have `latent_channels` channels.
    """
    if latents.shape[-1] != self.latent_channels:
      raise ValueError(
        f"latents have {latents.shape[-1]} channels, but this autoencoder has "
        f"{self.latent_channels}; mean and log-variance are no latent, draw "
        "one with Posterior.sample"
      )
    images = self.decoder(self.post_quant_conv(latents))
    return images.astype(jnp.float32)

  def __call__(
    self, images: Float[Array, "b h w 3"]
  ) -> Float[Array, "b h w 3"]:
    """Reconstructs images from the means of their posteriors (for `init`).

    Args:
      images: As for `encode`.

    Returns:
      The reconstructions, as from `decode`.
    """
    return self.decode(self.encode(images).mean)


@flax.struct.dataclass
class VAETokenizer:
  """An autoencoder with its weights; a pytree of them.

  Attributes:
    name: Which one, e.g. "va_vae".
    network: The network.
    params: Its parameters.
  """

  name: str = flax.struct.field(pytree_node=False)
  network: AutoencoderKL = flax.struct.field(pytree_node=False)
  params: Any

  def posterior(self, images: Float[Array, "b _ _ 3"]) -> Posterior:
    """The posteriors of the images' latents.

    Args:
      images: As for `AutoencoderKL.encode`.
    """
    variables = {"params": self.params}
    posterior = self.network.apply(variables, images, method="encode")
    return cast(Posterior, posterior)

  def encode(self, images: Float[Array, "b _ _ 3"]) -> Float[Array, "b h w c"]:
    """The means of the images' posteriors.

    Args:
      images: As for `AutoencoderKL.encode`.
    """
    return self.posterior(images).mean

  def decode(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b _ _ 3"]:
    """Latents to images.

    Args:
      latents: As for `AutoencoderKL.decode`.
    """
    variables = {"params": self.params}
    images = self.network.apply(variables, latents, method="decode")
    return cast(jax.Array, images)


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
