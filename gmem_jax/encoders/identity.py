"""The tokenizer that does nothing: latents are pixels.

For images so small that a flow can work on them directly.
"""

from jaxtyping import Array, Float


class IdentityTokenizer:
  """Pixels in, pixels out."""

  name = "identity"

  def encode(
    self, images: Float[Array, "b H W ch"]
  ) -> Float[Array, "b H W ch"]:
    """Returns the images.

    Args:
      images: Images in [-1, 1].
    """
    return images

  def decode(
    self, latents: Float[Array, "b H W ch"]
  ) -> Float[Array, "b H W ch"]:
    """Returns the latents.

    Args:
      latents: Images in [-1, 1].
    """
    return latents
