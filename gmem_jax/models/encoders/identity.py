"""The tokenizer that does nothing: latents are pixels.

For images so small that a flow can work on them directly.
"""

import flax.struct
from jaxtyping import Array, Float


@flax.struct.dataclass
class IdentityTokenizer:
  """Pixels in, pixels out; a pytree without leaves.

  Attributes:
    name: "identity".
  """

  name: str = flax.struct.field(pytree_node=False, default="identity")

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
