"""The LightningDiT family: the network of GMem's current release.

Letters: `b` batch, `d` width, `s` snippet width.
"""

from typing import Any

from jaxtyping import Array, Float, Key

from gmem_jax.models import blocks, layers, sit, transformer

_WIDTHS = sit.WIDTHS | {
  "1p0B": {"width": 1536, "depth": 24, "heads": 24},
  "1p6B": {"width": 1792, "depth": 28, "heads": 28},
}
# The published code names S only with patch 1, and L only with patch 2.
_PATCHES = {"S": (1,), "L": (2,)}
SIZES: dict[str, dict[str, Any]] = {
  f"{name}/{patch}": {**widths, "patch": patch}
  for name, widths in _WIDTHS.items()
  for patch in _PATCHES.get(name, (1, 2))
}


class LightningDiT(transformer.FlowTransformer):
  """SiT with SwiGLU, rotary positions and RMSNorm, on a memory snippet.

  Nothing starts at zero: the published network leaves the usual zero
  initialisation out. Published sizes are XL/1 and B/1 on latents of
  16 x 16 x 32. For the switches see `blocks.Style`.

  Source: Yao et al. (2025), arXiv 2501.01423; GMem, arXiv 2412.08781.
  """

  snippet_dropout: float = 0.4
  projector_depth: int = 4
  swiglu: bool = True
  rope: bool = True
  rms_norm: bool = True
  qk_norm: bool = False
  shift: bool = True

  @property
  def style(self) -> blocks.Style:
    """The switches of the family."""
    return blocks.Style(
      swiglu=self.swiglu,
      rope=self.rope,
      rms_norm=self.rms_norm,
      qk_norm=self.qk_norm,
      shift=self.shift,
    )

  def embed_snippet(
    self,
    snippet: transformer.Snippet,
    dropout_key: Key[Array, "..."] | None,
    name: str,
  ) -> Float[Array, "*b d"]:
    """Dropout of the raw elements, then a linear layer."""
    # It is regularisation, not the null condition: no whole snippet is dropped,
    # and guidance relies on zeros that training has never shown.
    x = layers.dropout(snippet, self.snippet_dropout, dropout_key)
    return layers.dense(self.width, "float32", name=name)(x)
