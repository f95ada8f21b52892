"""The training loss: flow matching, cosine direction, and REPA projection.

For a batch of data x1, noise x0 and times t the network sees
x_t = alpha x1 + sigma x0 and is fitted to the velocity alpha' x1 + sigma' x0
(or to the noise, score or data). The total is

  loss = mean |v - u|^2 + mean (1 - cos(v, u)) + weight * projection,

where the cosine compares channel vectors at each pixel, and the projection
aligns the network's projected tokens with the image's encoder tokens.

Shapes: `b` batch, `h w c` latent, `n` tokens, `d` token width. All losses are
computed and reduced in float32.

Source: GMem (arXiv 2412.08781), section 3.2; SiT (weightings); LightningDiT
(cosine, logit-normal time); REPA (arXiv 2410.06940), equation 8.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from gmem_jax.diffusion import paths

# Norms are kept above these: the defaults of PyTorch's `cosine_similarity` and
# `normalize`, with which the published losses are written.
COSINE_EPS = 1e-8
PROJECTION_EPS = 1e-12


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """What the network is trained to predict, and how errors are weighed.

  Attributes:
    weighting: Weight in time of the squared error of the other networks:
      "none" is 1, "velocity" makes it the error of the velocity, "likelihood"
      the bound on the likelihood. Velocity networks take "none" alone, data
      networks "none" or "velocity".
    time: Law of t; "lognormal" is the logistic function of a standard normal,
      which prefers the middle of the path.
    cosine: Whether to add the cosine loss (velocity networks only).
    projection_weight: Factor of the REPA projection; 0 turns it off.
    train_eps: Distance of t from the path's singular ends, or None for 0
      (velocity on "linear" and "gvp"), 0.05 (data), 1e-5 ("vp") or 1e-3 (the
      rest).
  """

  path: paths.Path
  prediction: paths.Prediction
  weighting: Literal["none", "velocity", "likelihood"]
  time: Literal["lognormal", "uniform"]
  cosine: bool
  projection_weight: float
  train_eps: float | None

  def __post_init__(self):
    if self.prediction == "velocity" and self.weighting != "none":
      raise ValueError(
        f"config.loss.weighting={self.weighting!r}: must be 'none' with"
        " config.loss.prediction='velocity'"
      )
    if self.prediction == "data" and self.weighting == "likelihood":
      raise ValueError(
        "config.loss.weighting='likelihood': must be 'none' or 'velocity' with"
        " config.loss.prediction='data'"
      )
    if self.prediction != "velocity" and self.cosine:
      raise ValueError(
        "config.loss.cosine=True: must be False unless"
        " config.loss.prediction='velocity'"
      )
    if not 0 <= self.projection_weight < float("inf"):
      raise ValueError(
        f"config.loss.projection_weight={self.projection_weight}: must be"
        " finite and at least 0"
      )
    if self.train_eps is not None and not 0 < self.train_eps < 0.5:
      raise ValueError(
        f"config.loss.train_eps={self.train_eps}: must be in (0, 0.5), or None"
        " for the default of the path"
      )


# Maps points and times to predictions and projected tokens (or None).
# Parameters and condition are bound to it.
TrainingNetwork = Callable[
  [Float[Array, "b ..."], Float[Array, " b"]],
  tuple[Float[Array, "b ..."], Float[Array, "b n d"] | None],
]


def sample_time(
  config: LossConfig, key: Key[Array, ""], batch: int
) -> Float[Array, " b"]:
  """Draws a float32 time inside the training interval for each sample."""
  if config.time == "lognormal":
    t = jax.nn.sigmoid(jax.random.normal(key, (batch,)))
  else:
    t = jax.random.uniform(key, (batch,))
  eps = config.train_eps
  if eps is None:
    eps = paths.default_train_eps(config.path, config.prediction)
  t0, t1 = paths.interval(config.path, config.prediction, eps=eps)
  return t0 + (t1 - t0) * t


def squared_error(
  config: LossConfig,
  output: Float[Array, "b ..."],
  x1: Float[Array, "b ..."],
  x0: Float[Array, "b ..."],
  t: Float[Array, " b"],
) -> Float[Array, " b"]:
  """The weighted squared error of each sample, averaged over its elements.

  |v - u|^2 for velocity, w |noise - x0|^2 for noise, w |sigma score + x0|^2 for
  score, and w |data - x1|^2 for data networks, given their output at x_t.
  """
  if config.prediction == "velocity":
    error = output - paths.velocity(config.path, x1, x0, t)
  elif config.prediction == "noise":
    error = output - x0
  elif config.prediction == "data":
    error = output - x1
  else:
    sigma = paths.coefficients(config.path, t).sigma
    error = output * paths.expand(sigma, output) + x0
  loss = jnp.mean(error**2, axis=tuple(range(1, error.ndim)))
  if config.weighting == "none":
    return loss
  if config.prediction == "data":
    return paths.data_scale(config.path, t) ** 2 * loss
  sigma = paths.coefficients(config.path, t).sigma
  variance = paths.drift_variance(config.path, t)
  if config.weighting == "velocity":
    return (variance / sigma) ** 2 * loss
  return variance / sigma**2 * loss


def _norm(
  vectors: Float[Array, "*axes d"], smallest: float
) -> Float[Array, "*axes"]:
  """Norms over the last axis, clamped."""
  # Clamped before the root: at a zero vector the root's gradient is infinite,
  # and a network whose last layer begins at zero outputs just that.
  return jnp.sqrt(jnp.maximum(jnp.sum(vectors**2, axis=-1), smallest**2))


def cosine_loss(
  v: Float[Array, "b h w c"], u: Float[Array, "b h w c"]
) -> Float[Array, " b"]:
  """One minus the cosine of the channel vectors, averaged over pixels."""
  norms = _norm(v, COSINE_EPS) * _norm(u, COSINE_EPS)
  return jnp.mean(1 - jnp.sum(v * u, axis=-1) / norms, axis=(1, 2))


def projection_loss(
  projected: Float[Array, "b n d"], tokens: Float[Array, "b n d"]
) -> Float[Array, ""]:
  """Minus the mean cosine of projected and encoder tokens; -1 is aligned."""
  norms = _norm(projected, PROJECTION_EPS) * _norm(tokens, PROJECTION_EPS)
  return -jnp.mean(jnp.sum(projected * tokens, axis=-1) / norms)


def flow_loss(
  config: LossConfig,
  network: TrainingNetwork,
  x1: Float[Array, "b ..."],
  x0: Float[Array, "b ..."],
  t: Float[Array, " b"],
  tokens: Float[Array, "b n d"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
  """The training loss of one batch.

  Args:
    config: The terms and their weights.
    network: Maps (x_t, t) to its prediction and its projected tokens.
    x1: Data, normalised latents; or vectors, as of snippets.
    x0: Standard normal noise.
    t: Times, as `sample_time` draws them.
    tokens: Encoder tokens of the same images; needed with a projection.

  Returns:
    The loss, and its terms unweighted: the squared error under the name of
    the prediction (published training curves show this term alone), and
    "cosine" and "projection" where they are on.

  Raises:
    ValueError: The projection is on and one side of it is missing.
  """
  # A mean over a batch in bfloat16 keeps two digits, so all of it is float32.
  x1, x0, t = (array.astype(jnp.float32) for array in (x1, x0, t))
  output, projected = network(paths.interpolate(config.path, x1, x0, t), t)
  output = output.astype(jnp.float32)

  loss = jnp.mean(squared_error(config, output, x1, x0, t))
  metrics = {config.prediction: loss}
  if config.cosine:
    target = paths.velocity(config.path, x1, x0, t)
    metrics["cosine"] = jnp.mean(cosine_loss(output, target))
    loss = loss + metrics["cosine"]
  if config.projection_weight:
    if projected is None or tokens is None:
      missing = (
        "batch has no encoder tokens"
        if tokens is None
        else "network projects no tokens"
      )
      raise ValueError(
        f"config.loss.projection_weight={config.projection_weight}: the"
        f" {missing}; provide them, or set it to 0"
      )
    metrics["projection"] = projection_loss(
      projected.astype(jnp.float32), tokens.astype(jnp.float32)
    )
    loss = loss + config.projection_weight * metrics["projection"]
  return loss, metrics
