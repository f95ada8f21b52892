"""The SiT family: the network of GMem's first release.

Letters: `b` batch, `d` width, `s` snippet width.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from gmem_jax.models import blocks, layers, transformer

WIDTHS = {
  "S": {"width": 384, "depth": 12, "heads": 6},
  "B": {"width": 768, "depth": 12, "heads": 12},
  "L": {"width": 1024, "depth": 24, "heads": 16},
  "XL": {"width": 1152, "depth": 28, "heads": 16},
}
SIZES: dict[str, dict[str, Any]] = {
  f"{name}/{patch}": {**widths, "patch": patch}
  for name, widths in WIDTHS.items()
  for patch in (2, 4, 8)
}


class SiT(transformer.FlowTransformer):
  """Scalable interpolant transformer, conditioned on a memory snippet.

  LayerNorm without parameters, GELU, no rotation of queries and keys, zero
  modulations and output at the start. The published network is XL/2 on latents
  of 32 x 32 x 4; in its time 0 is data, see `turn_params`.

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
    """Linear layer, then dropout: the other order than LightningDiT's."""
    y = layers.dense(self.width, "float32", name=name)(snippet)
    return layers.dropout(y, self.snippet_dropout, dropout_key)


def turn_params(params: Mapping[str, Any]) -> dict[str, Any]:
  """Turns the weights of the release, so that the network needs no turning.

  Args:
    params: Parameters of a network of the release, whose time 0 is data.

  Returns:
    Parameters whose network is `sit_release.turn_time` of the release's, up to
    rounding.
  """
  # The network sees t through cos(w t) and sin(w t), and those of 1 - t are
  # linear in them, so the turn goes into the first layer of the timestep's
  # embedding; the sign of the velocity goes into the output layer.
  embed, final = params["time_embed"], params["final"]
  kernel = np.asarray(embed["fc1"]["kernel"], np.float64)
  cos_rows, sin_rows = np.split(kernel, 2)
  # cos and sin of w itself: the features of t = 1.
  features = layers.timestep_features(jnp.ones(1))[0]
  cos, sin = np.split(np.asarray(features, np.float64)[:, None], 2)
  turned = np.concatenate(
    [cos * cos_rows + sin * sin_rows, sin * cos_rows - cos * sin_rows]
  )
  fc1 = {**embed["fc1"], "kernel": turned.astype(np.float32)}
  linear = {name: -array for name, array in final["linear"].items()}
  return {
    **params,
    "time_embed": {**embed, "fc1": fc1},
    "final": {**final, "linear": linear},
  }
