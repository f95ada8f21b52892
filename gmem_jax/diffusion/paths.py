"""Paths from noise to data, and every conversion between predictions.

A path joins a noise x0 ~ N(0, I) to a data point x1 in unit time,

  x_t = alpha(t) x1 + sigma(t) x0,    t = 0: noise,  t = 1: data,

and its derivative in time is the velocity u_t = alpha'(t) x1 + sigma'(t) x0. A
network may predict the velocity, the noise x0, the data x1 or the score of x_t;
given x_t each determines the others, because (x1, x0) -> (x_t, u_t) is linear:

  score = (alpha v - alpha' x) / (alpha' sigma^2 - alpha sigma sigma')
  noise = -sigma score
  v     = (alpha'/alpha) x + variance_drift score
  v     = alpha' x1 + (sigma'/sigma) (x - alpha x1).

Shapes: `b` batch; `...` the axes of one latent. Times are one per sample.
Everything is computed in the dtype of its arguments.

Source: Albergo et al., "Stochastic interpolants"; Ma et al., "SiT: exploring
flow and diffusion-based generative models with scalable interpolant
transformers", sections 2 and 3; GMem (arXiv 2412.08781), section 3. For data:
Li and He, "Back to basics: let denoising generative models denoise" (arXiv
2511.13720).
"""

import math
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

Path = Literal["linear", "gvp", "vp"]
Prediction = Literal["velocity", "noise", "score", "data"]
DiffusionForm = Literal[
  "linear", "sigma", "sbdm", "constant", "decreasing", "increasing_decreasing"
]

# Beta at the data and at the noise of the variance-preserving path: those of
# Song et al., "Score-based generative modeling through SDEs".
BETA_MIN = 0.1
BETA_MAX = 20.0


class Coefficients(NamedTuple):
  """The scalars of a path at given times.

  Attributes:
    alpha: Factor of the data.
    d_alpha: Its time derivative.
    sigma: Factor of the noise.
    d_sigma: Its time derivative; infinite at t=1 for "vp".
    sigma_d_sigma: sigma times d_sigma, finite at every time of every path.
  """

  alpha: Float[Array, " b"]
  d_alpha: Float[Array, " b"]
  sigma: Float[Array, " b"]
  d_sigma: Float[Array, " b"]
  sigma_d_sigma: Float[Array, " b"]


def coefficients(path: Path, t: Float[Array, " b"]) -> Coefficients:
  """Evaluates a path.

  Args:
    path: "linear" (alpha = t, sigma = 1-t), "gvp" (the quarter circle alpha =
      sin(pi t/2), sigma = cos(pi t/2)) or "vp" (the diffusion with beta linear
      from 0.1 at the data to 20 at the noise).
    t: Times in [0, 1].

  Source: SiT, section 2.2 and appendix A, with its time reversed.
  """
  if path == "linear":
    one = jnp.ones_like(t)
    return Coefficients(t, one, 1 - t, -one, t - 1)
  if path == "gvp":
    quarter = math.pi / 2
    sin, cos = jnp.sin(quarter * t), jnp.cos(quarter * t)
    return Coefficients(
      sin, quarter * cos, cos, -quarter * sin, -quarter * sin * cos
    )
  # The time of score-based models: 0 at the data.
  s = 1 - t
  log_alpha = -(s**2) * (BETA_MAX - BETA_MIN) / 4 - s * BETA_MIN / 2
  d_log_alpha = s * (BETA_MAX - BETA_MIN) / 2 + BETA_MIN / 2
  alpha = jnp.exp(log_alpha)
  # Near the data 1 - alpha^2 cancels, and float32 would lose sigma's digits.
  sigma = jnp.sqrt(-jnp.expm1(2 * log_alpha))
  sigma_d_sigma = -(alpha**2) * d_log_alpha
  return Coefficients(
    alpha, alpha * d_log_alpha, sigma, sigma_d_sigma / sigma, sigma_d_sigma
  )


def expand(
  scalar: Float[Array, " b"], x: Float[Array, "b ..."]
) -> Float[Array, "b ..."]:
  """Shapes one scalar per sample so that it multiplies `x`, in x's dtype."""
  return scalar.astype(x.dtype).reshape((-1,) + (1,) * (x.ndim - 1))


def interpolate(
  path: Path,
  x1: Float[Array, "b ..."],
  x0: Float[Array, "b ..."],
  t: Float[Array, " b"],
) -> Float[Array, "b ..."]:
  """The point x_t = alpha x1 + sigma x0 between data x1 and noise x0."""
  at = coefficients(path, t)
  return expand(at.alpha, x1) * x1 + expand(at.sigma, x0) * x0


def velocity(
  path: Path,
  x1: Float[Array, "b ..."],
  x0: Float[Array, "b ..."],
  t: Float[Array, " b"],
) -> Float[Array, "b ..."]:
  """The target u_t = alpha' x1 + sigma' x0; x1 - x0 on the linear path."""
  at = coefficients(path, t)
  return expand(at.d_alpha, x1) * x1 + expand(at.d_sigma, x0) * x0


def drift_mean(
  path: Path, x: Float[Array, "b ..."], t: Float[Array, " b"]
) -> Float[Array, "b ..."]:
  """The linear part of the velocity, negated: -(alpha'/alpha) x.

  The velocity is `drift_variance * score - drift_mean`. Infinite at t=0 on the
  paths that begin at pure noise, "linear" and "gvp".
  """
  # The sign is that of the published code, whose numbers the tests hold.
  at = coefficients(path, t)
  return -expand(at.d_alpha / at.alpha, x) * x


def drift_variance(path: Path, t: Float[Array, " b"]) -> Float[Array, " b"]:
  """The score's factor (alpha'/alpha) sigma^2 - sigma sigma'; see `drift_mean`.

  Half of beta for "vp".
  """
  at = coefficients(path, t)
  # The product, not its factors: d_sigma alone is infinite at t=1 on "vp".
  return at.d_alpha / at.alpha * at.sigma**2 - at.sigma_d_sigma


def score_from_velocity(
  path: Path,
  v: Float[Array, "b ..."],
  x: Float[Array, "b ..."],
  t: Float[Array, " b"],
) -> Float[Array, "b ..."]:
  """The score of the density of x_t, from the velocity at x_t.

  (t v - x) / (1 - t) on the linear path. Infinite at t=1 on "linear" and "gvp".

  Source: SiT, equation 9.
  """
  at = coefficients(path, t)
  scale = at.d_alpha * at.sigma**2 - at.alpha * at.sigma_d_sigma
  return (expand(at.alpha, v) * v - expand(at.d_alpha, x) * x) / expand(
    scale, x
  )


def velocity_from_score(
  path: Path,
  score: Float[Array, "b ..."],
  x: Float[Array, "b ..."],
  t: Float[Array, " b"],
) -> Float[Array, "b ..."]:
  """The probability-flow velocity; infinite at t=0 on "linear" and "gvp"."""
  variance = drift_variance(path, t)
  return expand(variance, score) * score - drift_mean(path, x, t)


def velocity_from_data(
  path: Path,
  x1: Float[Array, "b ..."],
  x: Float[Array, "b ..."],
  t: Float[Array, " b"],
) -> Float[Array, "b ..."]:
  """The velocity at x of a flow to x1: (x1 - x) / (1 - t) on the linear path.

  Infinite at t=1.
  """
  at = coefficients(path, t)
  ratio = at.sigma_d_sigma / at.sigma**2
  return expand(data_scale(path, t), x1) * x1 + expand(ratio, x) * x


def data_scale(path: Path, t: Float[Array, " b"]) -> Float[Array, " b"]:
  """What an error of the predicted data is multiplied by in the velocity.

  alpha' - alpha sigma'/sigma, which is 1 / (1 - t) on the linear path.
  """
  at = coefficients(path, t)
  return at.d_alpha - at.alpha * at.sigma_d_sigma / at.sigma**2


def to_velocity(
  path: Path,
  prediction: Prediction,
  output: Float[Array, "b ..."],
  x: Float[Array, "b ..."],
  t: Float[Array, " b"],
) -> Float[Array, "b ..."]:
  """Reads a network's output at (x, t) as the velocity there.

  Regular where `interval` says so.
  """
  if prediction == "velocity":
    return output
  if prediction == "data":
    # Not by the score, which would be singular at t=0.
    return velocity_from_data(path, output, x, t)
  return velocity_from_score(
    path, to_score(path, prediction, output, x, t), x, t
  )


def to_score(
  path: Path,
  prediction: Prediction,
  output: Float[Array, "b ..."],
  x: Float[Array, "b ..."],
  t: Float[Array, " b"],
) -> Float[Array, "b ..."]:
  """Reads a network output as the score at (x, t); see `to_velocity`."""
  if prediction == "velocity":
    return score_from_velocity(path, output, x, t)
  at = coefficients(path, t)
  if prediction == "noise":
    return -output / expand(at.sigma, output)
  if prediction == "data":
    error = expand(at.alpha, output) * output - x
    return error / expand(at.sigma**2, output)
  return output


def diffusion(
  path: Path, form: DiffusionForm, norm: float, t: Float[Array, " b"]
) -> Float[Array, " b"]:
  """Half the squared noise coefficient, w(t), of the reverse SDE.

  The SDE is dx = (v + w score) dt + sqrt(2 w) dW; every w >= 0 gives the same
  densities.

  Args:
    path: Matters to "sigma" and "sbdm" alone.
    form: "linear" 1-t; "sigma" sigma(t); "sbdm" the drift variance, which is
      the diffusion of score-based models and infinite at t=0 on "linear" and
      "gvp"; "constant" 1; "decreasing" ((norm cos(pi t) + 1)/2)^2;
      "increasing_decreasing" sin(pi t)^2.
    norm: Factor of the form (inside the square for "decreasing").
    t: Times in [0, 1].

  Source: SiT, section 2.4.
  """
  if form == "linear":
    return norm * (1 - t)
  if form == "sigma":
    return norm * coefficients(path, t).sigma
  if form == "sbdm":
    return norm * drift_variance(path, t)
  if form == "constant":
    return jnp.full_like(t, norm)
  if form == "decreasing":
    return (norm * jnp.cos(math.pi * t) + 1) ** 2 / 4
  return norm * jnp.sin(math.pi * t) ** 2


def default_train_eps(path: Path, prediction: Prediction) -> float:
  """Epsilon of the training interval where the configuration gives none."""
  # An error of the data counts 1 / (1 - t) times in the velocity: nearer to the
  # data, nothing else would be learned (arXiv 2511.13720 cuts there too).
  if prediction == "data":
    return 0.05
  if path == "vp":
    return 1e-5
  return 0.0 if prediction == "velocity" else 1e-3


def default_sample_eps(path: Path, prediction: Prediction) -> float:
  """Epsilon of the sampling interval where the configuration gives none."""
  # Nearer to the data such a network was never trained, see above.
  if prediction == "data":
    return 0.05
  regular = path != "vp" and prediction == "velocity"
  return 0.0 if regular else 1e-3


def interval(
  path: Path,
  prediction: Prediction,
  *,
  eps: float,
  sde: bool = False,
  diffusion_form: DiffusionForm = "linear",
  last_step_size: float = 0.0,
) -> tuple[float, float]:
  """The times (t0, t1) on which a network is trained or integrated.

  Some conversions divide by alpha (zero at t=0) or sigma (zero at t=1). Where
  one is needed, the interval keeps the distance `eps` from that end, or leaves
  `last_step_size` to an SDE's last step. The ODE of a velocity network on
  "linear" or "gvp" needs none; an SDE needs the score, and with the diffusion
  form "sbdm" is also singular at t=0. A data network is singular at t=1 alone.

  Returns:
    0 <= t0 < t1 <= 1.
  """
  # The published table has two accidents that are not kept: it replaces a given
  # epsilon by 0 for velocity networks on "linear" and "gvp", and leaves the
  # sampling epsilon undefined for all others.
  end = 1 - last_step_size if sde and last_step_size else 1 - eps
  if path == "vp":
    # This path never reaches pure noise: alpha(0) is exp(-5).
    return 0.0, end
  if prediction in ("noise", "score"):
    return eps, end
  if not sde:
    return 0.0, 1.0 if prediction == "velocity" else end
  return (eps if diffusion_form == "sbdm" else 0.0), end
