"""The LightningDiT family: the network of GMem's current release.

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
  "1p0B": {"width": 1536, "depth": 24, "heads": 24},
  "1p6B": {"width": 1792, "depth": 28, "heads": 28},
}
_PATCHES = {"S": (1,), "L": (2,)}
SIZES: dict[str, dict[str, Any]] = {
  f"{name}/{patch}": {**widths, "patch": patch}
  for name, widths in _WIDTHS.items()
  for patch in _PATCHES.get(name, (1, 2))
}


class LightningDiT(transformer.FlowTransformer):
  """SiT with SwiGLU, rotary positions and RMSNorm, on a memory snippet.

  The dropout acts on single elements of the raw snippet; it does not replace
  whole snippets by the null condition. Nothing starts at zero: the published
  network leaves the usual zero-initialisation out. Published sizes are XL/1 and
  B/1 on latents of 16x16x32.

  Attributes:
    swiglu: gated perceptron instead of one with GELU.
    rope: rotate queries and keys by their position.
    rms_norm: RMSNorm instead of LayerNorm without parameters.
    qk_norm: normalise queries and keys.
    shift: modulate by a shift too, not only by scale and gate.
    others: see `transformer.FlowTransformer`.

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
    """Dropout, then a linear layer."""
    x = layers.dropout(snippet, self.snippet_dropout, dropout_key)
    return layers.dense(self.width, "float32", name=name)(x)
