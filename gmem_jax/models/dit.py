"""The two published networks, SiT and LightningDiT, as the config names them.

Letters: `b` batch, `d` width, `s` snippet width.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from gmem_jax.config import networks
from gmem_jax.files import atomic
from gmem_jax.models import blocks, layers, transformer

_WIDTHS = {
  "S": {"width": 384, "depth": 12, "heads": 6},
  "B": {"width": 768, "depth": 12, "heads": 12},
  "L": {"width": 1024, "depth": 24, "heads": 16},
  "XL": {"width": 1152, "depth": 28, "heads": 16},
}
SIT_SIZES: dict[str, dict[str, Any]] = {
  f"{name}/{patch}": {**widths, "patch": patch}
  for name, widths in _WIDTHS.items()
  for patch in (2, 4, 8)
}
_LARGE = _WIDTHS | {
  "1p0B": {"width": 1536, "depth": 24, "heads": 24},
  "1p6B": {"width": 1792, "depth": 28, "heads": 28},
}
# The published code names S only with patch 1, and L only with patch 2.
_PATCHES = {"S": (1,), "L": (2,)}
LIGHTNING_DIT_SIZES: dict[str, dict[str, Any]] = {
  f"{name}/{patch}": {**widths, "patch": patch}
  for name, widths in _LARGE.items()
  for patch in _PATCHES.get(name, (1, 2))
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
    linear = layers.dense(self.width, "float32", name, precision=layers.EXACT)
    return layers.dropout(linear(snippet), self.snippet_dropout, dropout_key)


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
    linear = layers.dense(self.width, "float32", name, precision=layers.EXACT)
    return linear(x)


FAMILIES = {"lightning_dit": LightningDiT, "sit": SiT}
# Settings of how a network is run or trained: converted weights fit any.
UNCHECKED = (
  "snippet_dropout", "dtype", "residual_dtype", "float8", "scan_layers",
  "remat", "attention",
)  # fmt: skip


def build(
  config: networks.ModelConfig,
  *,
  channels: int,
  snippet_dim: int,
  token_dim: int,
) -> transformer.FlowTransformer:
  """Builds the network; see `transformer.FlowTransformer` for the three widths.

  Raises:
    ValueError: On settings that contradict each other, naming the key.
  """
  cls = FAMILIES[config.family]
  # One section serves both families: SiT has no field for LightningDiT's five
  # switches, which it ignores.
  known = {f.name for f in dataclasses.fields(cls)}
  settings = dataclasses.asdict(config)
  del settings["family"]
  return cls(
    channels=channels,
    snippet_dim=snippet_dim,
    token_dim=token_dim,
    **{name: value for name, value in settings.items() if name in known},
  )


def differing_keys(
  config: networks.ModelConfig,
  stored: dict[str, Any],
  ignored: Sequence[str] = (),
) -> str:
  """Lists the keys in which converted weights differ, a line for each or "".

  Args:
    config: Of its keys, those that are not stored are not compared.
    stored: The model of the converted weights; may have more and fewer keys.
    ignored: Keys that may differ.
  """
  ours = dataclasses.asdict(config)
  common = [key for key in ours if key in stored]
  return "\n".join(
    atomic.differences(
      {key: stored[key] for key in common},
      {key: ours[key] for key in common},
      prefix="config.model.",
      ignored=(*UNCHECKED, *ignored),
    )
  )


def is_release(metadata: Mapping[str, Any]) -> bool:
  """Whether converted weights are of the first release: its time 0 is data.

  A SiT that we trained and exported has our time.
  """
  return metadata["kind"] == "sit" and not metadata.get("exported", False)


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
