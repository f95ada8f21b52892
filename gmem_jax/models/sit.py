"""The SiT family: the network of GMem's first release.

Letters: `b` batch, `d` width, `s` snippet width.
"""

from typing import Any

from jaxtyping import Array, Float, Key

from gmem_jax.models import blocks, layers, transformer

_WIDTHS = {
  "S": {"width": 384, "depth": 12, "heads": 6},
  "B": {"width": 768, "depth": 12, "heads": 12},
  "L": {"width": 1024, "depth": 24, "heads": 16},
  "XL": {"width": 1152, "depth": 28, "heads": 16},
}
SIZES: dict[str, dict[str, Any]] = {
  f"{name}/{patch}": {**widths, "patch": patch}
  for name, widths in _WIDTHS.items()
  for patch in (2, 4, 8)
}


class SiT(transformer.FlowTransformer):
  """Scalable interpolant transformer, conditioned on a memory snippet.

  LayerNorm without parameters, GELU, no rotation of queries and keys, zero
  modulations and output at the start. The dropout acts after the snippet's
  linear layer. The published network is XL/2 on latents of 32x32x4; its time
  runs the other way (0 is data), which is the sampler's business.

  Attributes: see `transformer.FlowTransformer`.

  Source: Ma et al. (2024), arXiv 2401.08740; GMem, arXiv 2412.08781.
  """

  snippet_dropout: float = 0.2
  projector_depth: int = 8

  @property
  def style(self) -> blocks.Style:
    """The switches of the family."""
    return blocks.Style(zero_init=True)

  def embed_snippet(
    self,
    snippet: transformer.Snippet,
    dropout_key: Key[Array, "..."] | None,
    name: str,
  ) -> Float[Array, "*b d"]:
    """Linear layer, then dropout."""
    y = layers.dense(self.width, "float32", name=name)(snippet)
    return layers.dropout(y, self.snippet_dropout, dropout_key)
