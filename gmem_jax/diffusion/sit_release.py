"""The samplers of GMem's first release, which was built on SiT.

That release counts time the other way (t=1 noise, t=0 data), so its network
predicts minus the velocity of this package at 1 - t. With the network turned
(`turn_time`) its samplers are special cases of `samplers`, as `sampler_config`
spells out: its Euler-Maruyama from t=1 to 0.04 and a noiseless step to 0, with
w = 2t, is "sde_euler" with the diffusion "linear" and the last step "mean".

The release keeps the state in float64 and the network in float32. Here the
state has the dtype of the noise: to do the same, enable x64 and pass float64
noise. With x64 off, as on TPU, the state is float32, which moves the result by
float32 rounding alone (a few 1e-7 of the maximum).
"""

from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from gmem_jax.diffusion import guidance, samplers, schedule

# Where Euler-Maruyama stops adding noise, in the release's time.
LAST_TIME = 0.04


def turn_time(
  network: Callable[
    [Float[Array, "b ..."], Float[Array, " b"]], Float[Array, "b ..."]
  ],
) -> guidance.Network:
  """Turns a velocity network of the release into one of this package.

  Args:
    network: maps float32 points and times (t=1 noise) to the velocity from
      data to noise.

  Returns:
    A network with t=1 data, for `samplers`.
  """

  def turned(x, t):
    output = network(x.astype(jnp.float32), (1 - t).astype(jnp.float32))
    return -output

  return turned


def sampler_config(
  sampler: Literal["euler", "heun", "euler_maruyama"],
  steps: int,
  path: Literal["linear", "gvp"],
) -> samplers.SamplerConfig:
  """The settings that reproduce one of the release's samplers.

  Args:
    sampler: "euler" and "heun" integrate the ODE, Heun with a last step of
      Euler; "euler_maruyama" the SDE. Published samples use the latter.
    steps: as the release counts: steps of the ODE, points of the SDE's grid
      (published: 250).
    path: "gvp" is what the release calls "cosine".

  Returns:
    A configuration for a network from `turn_time`.
  """
  methods: dict[str, schedule.Method] = {
    "euler": "ode_euler",
    "heun": "ode_heun2_euler",
    "euler_maruyama": "sde_euler",
  }
  return samplers.SamplerConfig(
    path=path,
    prediction="velocity",
    method=methods[sampler],
    steps=steps if sampler == "euler_maruyama" else steps + 1,
    diffusion_form="linear",
    diffusion_norm=1.0,
    last_step="mean",
    last_step_size=LAST_TIME,
    timestep_shift=0.0,
    sample_eps=None,
    step_control="image",
    atol=1e-6,
    rtol=1e-3,
    guidance=guidance.GuidanceConfig(
      scale=1.0, start=0.0, end=1.0, after_end="conditional"
    ),
  )
