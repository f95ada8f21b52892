"""The time interval on which a network is trained and integrated.

Some conversions divide by alpha (zero at t=0) or sigma (zero at t=1), so the
interval stops short of those ends where such a conversion is needed.

The published code has the same table with two accidents that are not kept: it
replaced a given epsilon by 0 for velocity networks on "linear" and "gvp", and
left the sampling epsilon undefined for all the others.
"""

from gmem_jax.diffusion import paths

# What an unset epsilon becomes where the interval needs one.
TRAIN_EPS_VP = 1e-5
TRAIN_EPS = 1e-3
SAMPLE_EPS = 1e-3


def default_train_eps(path: paths.Path, prediction: paths.Prediction) -> float:
  """Epsilon of the training interval when the configuration gives none."""
  if path == "vp":
    return TRAIN_EPS_VP
  return 0.0 if prediction == "velocity" else TRAIN_EPS


def default_sample_eps(path: paths.Path, prediction: paths.Prediction) -> float:
  """Epsilon of the sampling interval when the configuration gives none."""
  regular = path != "vp" and prediction == "velocity"
  return 0.0 if regular else SAMPLE_EPS


def interval(
  path: paths.Path,
  prediction: paths.Prediction,
  *,
  eps: float,
  sde: bool = False,
  diffusion_form: paths.DiffusionForm = "linear",
  last_step_size: float = 0.0,
) -> tuple[float, float]:
  """Start and end time, 0 <= t0 < t1 <= 1.

  Args:
    path: the path.
    prediction: what the network predicts.
    eps: distance kept from a singular end. Unused by the ODE of a velocity
      network on "linear" or "gvp", which is regular on [0, 1].
    sde: whether the interval serves an SDE, whose drift needs the score.
    diffusion_form: the SDE's diffusion; "sbdm" is singular at t=0.
    last_step_size: length that the SDE leaves to its closing step.

  Returns:
    (t0, t1).
  """
  end = 1 - last_step_size if sde and last_step_size else 1 - eps
  if path == "vp":
    return 0.0, end
  if prediction != "velocity":
    return eps, end
  if not sde:
    return 0.0, 1.0
  return (eps if diffusion_form == "sbdm" else 0.0), end
