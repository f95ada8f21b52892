"""Classifier-free guidance inside an interval of time.

Inside the interval the network is evaluated twice, with the snippet and
without it, and its output moves away from the unconditional one,

  guided = unconditional + scale (conditional - unconditional).

Outside it the snippet alone is used, and the unconditional branch is not
computed: a sampler knows in advance which of its evaluations fall inside, so
they become loops of different static shapes.

Source: Ho and Salimans, "Classifier-free diffusion guidance"; Kynkäänniemi et
al., "Applying guidance in a limited interval"; GMem, section 4.
"""

import dataclasses
import enum
from collections.abc import Callable
from typing import Literal

import einops
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

# Maps points [b ...] and times [b] to predictions. Parameters and condition are
# bound to it.
Network = Callable[
  [Float[Array, "b ..."], Float[Array, " b"]], Float[Array, "b ..."]
]
# Likewise, to the predictions with and without the condition; see `pair`.
NetworkPair = Callable[
  [Float[Array, "b ..."], Float[Array, " b"]],
  tuple[Float[Array, "b ..."], Float[Array, "b ..."]],
]


class Branch(enum.Enum):
  """Which outputs an evaluation needs."""

  CONDITIONAL = "conditional"
  GUIDED = "guided"
  UNCONDITIONAL = "unconditional"


@dataclasses.dataclass(frozen=True)
class GuidanceConfig:
  """Strength and interval of the guidance.

  Attributes:
    scale: 1 is no guidance, and costs nothing.
    start: Guidance acts from this time on (t=0 noise, t=1 data).
    end: Guidance acts up to and including this time.
    after_end: The output after `end`: conditional, or unconditional as in the
      published code.
  """

  scale: float
  start: float
  end: float
  after_end: Literal["conditional", "unconditional"]

  def __post_init__(self):
    if not 0 <= self.scale < float("inf"):
      raise ValueError(
        f"config.sampler.guidance.scale={self.scale}: must be finite and at"
        " least 0 (1 is no guidance)"
      )
    if not 0 <= self.start <= self.end <= 1:
      raise ValueError(
        f"config.sampler.guidance.start={self.start},"
        f" config.sampler.guidance.end={self.end}: must be"
        " 0 <= start <= end <= 1 (t=0 noise, t=1 data)"
      )

  @property
  def on(self) -> bool:
    """Whether any evaluation could be guided."""
    return self.scale != 1


def branch_at(config: GuidanceConfig, t: float) -> Branch:
  """Which outputs the evaluation at time `t` needs."""
  # Compared in float32, as a network sees times: the float64 grid may be a
  # rounding below a `start` that it is meant to contain.
  if not config.on or np.float32(t) < np.float32(config.start):
    return Branch.CONDITIONAL
  if np.float32(t) <= np.float32(config.end):
    return Branch.GUIDED
  return Branch(config.after_end)


def combine(
  scale: float,
  conditional: Float[Array, "b ..."],
  unconditional: Float[Array, "b ..."],
) -> Float[Array, "b ..."]:
  """Extrapolates from the unconditional through the conditional output."""
  return unconditional + scale * (conditional - unconditional)


def pair(
  network: Callable[..., Float[Array, "b2 ..."]],
  x: Float[Array, "b ..."],
  t: Float[Array, " b"],
  condition: PyTree[Array],
  null: PyTree[Array],
) -> tuple[Float[Array, "b ..."], Float[Array, "b ..."]]:
  """Evaluates a network with and without its condition, in one call.

  The network maps (x, t, condition) to its output, sample by sample. `null` is
  the condition of the unconditional branch, of the same structure and shapes;
  zeros for the published networks.
  """
  # The two copies of a sample are neighbours: a batch that is sharded over
  # devices then stays where it is, which concatenated halves would not.

  def interleave(one, other):
    return einops.rearrange(
      jnp.stack([one, other], 1), "b two ... -> (b two) ..."
    )

  output = network(
    interleave(x, x),
    interleave(t, t),
    jax.tree.map(interleave, condition, null),
  )
  output = einops.rearrange(output, "(b two) ... -> two b ...", two=2)
  return output[0], output[1]


def select(
  config: GuidanceConfig,
  branch: Branch,
  network: Network,
  pairs: NetworkPair | None,
) -> Network:
  """The network of one branch, a function of (x, t).

  Raises:
    ValueError: The branch is not conditional and `pairs` is None.
  """
  if branch is Branch.CONDITIONAL:
    return network
  if pairs is None:
    raise ValueError(
      f"config.sampler.guidance.scale={config.scale}: needs the network"
      " without its condition; pass `pair`, or set the scale to 1"
    )

  def evaluate(x, t):
    conditional, unconditional = pairs(x, t)
    # Half of the pair is wasted, but only an interval that ends before t=1 with
    # `after_end` "unconditional" comes here.
    if branch is Branch.UNCONDITIONAL:
      return unconditional
    return combine(config.scale, conditional, unconditional)

  return evaluate
