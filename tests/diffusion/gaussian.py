"""Networks that are exact for Gaussian data, in closed form."""

import jax.numpy as jnp

from gmem_jax.diffusion import paths


def network(path, prediction, mean, covariance):
  """Predicts what a perfectly trained network would.

  Data are N(mean, covariance) over the last axis, independent elsewhere.

  Args:
    path: the path.
    prediction: what to predict.
    mean: [c].
    covariance: [c, c].
  """
  mean, covariance = jnp.asarray(mean), jnp.asarray(covariance)
  identity = jnp.eye(len(mean), dtype=mean.dtype)

  def predict(x, t):
    at = paths.coefficients(path, t)
    column = {k: v.reshape(-1, 1, 1) for k, v in at._asdict().items()}
    marginal = column["alpha"] ** 2 * covariance[None]
    marginal += column["sigma"] ** 2 * identity[None]
    drift = column["alpha"] * column["d_alpha"] * covariance[None]
    drift += column["sigma_d_sigma"] * identity[None]
    flat = x.reshape(x.shape[0], -1, x.shape[-1])
    centred = flat - column["alpha"] * mean.reshape(1, 1, -1)
    whitened = jnp.linalg.inv(marginal) @ centred.swapaxes(1, 2)
    if prediction == "velocity":
      output = (drift @ whitened).swapaxes(1, 2)
      output += column["d_alpha"] * mean.reshape(1, 1, -1)
    elif prediction == "data":
      posterior = column["alpha"] * (covariance[None] @ whitened)
      output = mean.reshape(1, 1, -1) + posterior.swapaxes(1, 2)
    else:
      score = -whitened.swapaxes(1, 2)
      output = score if prediction == "score" else -column["sigma"] * score
    return output.reshape(x.shape)

  return predict
