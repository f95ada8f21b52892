"""Draws memory snippets from a prior, without a bank.

Shapes: n memories, d snippet width, b memories of a call.
"""

import dataclasses
import functools
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Key

from gmem_jax import rngs
from gmem_jax.bank import bank as bank_lib
from gmem_jax.diffusion import guidance, samplers, schedule
from gmem_jax.files import paths, shown
from gmem_jax.parallel import sharding
from gmem_jax.train import checkpoint, prior as prior_lib, prior_rows

# Memories of a call. Kernels are chosen by shape and differ in the last bit, so
# that all calls have one, on one device: memory i has slot i modulo this.
CALL = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Prior:
  """A trained prior; memory i depends on (seed, i) alone.

  Attributes:
    record: What it knows of the bank's rows.
    stats: Mean and scale of these.
    params: Of its network.
    step: Training step of the parameters.
  """

  record: prior_rows.Record
  stats: dict[str, np.ndarray]
  params: Any
  step: int

  @property
  def info(self) -> dict[str, Any]:
    """All that its memories depend on, but seed and settings; JSON."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves((self.stats, self.params)):
      digest.update(np.ascontiguousarray(leaf).tobytes())
    return {
      "step": self.step,
      "bank": self.record.digest,
      "sha256": digest.hexdigest(),
    }

  @property
  def nbytes(self) -> int:
    """Bytes of all that sampling reads."""
    return sum(x.nbytes for x in jax.tree.leaves((self.stats, self.params)))

  def group(self, name: str) -> int | None:
    """The number of a group; None for "", any.

    Raises:
      ValueError: If there is no such group.
    """
    if not name:
      return None
    groups = self.record.groups
    if name not in groups:
      known = f"it has {shown.value(list(groups))}" if groups else "it has none"
      raise ValueError(
        f"config.sample.group={name!r}: the prior has no such group; {known}"
      )
    return groups.index(name)

  def draw(
    self,
    seed: int,
    numbers: Int[np.ndarray, " n"],
    *,
    group: str = "",
    points: int = 33,
    scale: float = 1.0,
  ) -> Float32[np.ndarray, "n d"]:
    """Draws memory snippets, unit vectors.

    Args:
      seed: Of all draws.
      numbers: Which memories.
      group: Group of all; "": each is of one that is drawn.
      points: Of the time grid; see `config.prior.points`.
      scale: Of the guidance by the group.

    Raises:
      ValueError: If there is no such group.
    """
    fixed, root = self.group(group), rngs.root(seed)
    run = self._jitted(points, scale if self.record.groups else 1.0)
    drawn = np.empty((len(numbers), self.record.width), np.float32)
    calls = numbers // CALL
    for call in np.unique(calls).tolist():
      slots = np.arange(call * CALL, (call + 1) * CALL, dtype=np.int32)
      groups = _draw_groups(root, slots, self.record.counts)
      if fixed is not None:
        groups = np.full(CALL, fixed, np.int32)
      made = np.asarray(run(self.params, self.stats, root, slots, groups))
      mine = calls == call
      drawn[mine] = made[numbers[mine] % CALL]
    return drawn

  @functools.cached_property
  def _jitted(self) -> Any:
    """(points, scale) -> the jitted function of a call."""
    network = self.record.network()
    return functools.cache(
      lambda points, scale: jax.jit(
        functools.partial(_integrate, network, _settings(points, scale))
      )
    )


def _settings(points: int, scale: float) -> schedule.SamplerConfig:
  """How the prior is integrated."""
  return schedule.SamplerConfig(
    path=prior_lib.LOSS.path,
    prediction=prior_lib.LOSS.prediction,
    method="ode_heun2",
    steps=points,
    # These six are unused by the method.
    diffusion_form="linear",
    diffusion_norm=1.0,
    last_step="none",
    last_step_size=0.0,
    atol=1e-6,
    rtol=1e-3,
    step_control="image",
    timestep_shift=0.0,
    sample_eps=None,
    guidance=guidance.GuidanceConfig(
      scale=scale, start=0.0, end=1.0, after_end="conditional"
    ),
  )


def _integrate(
  network: Any,
  config: schedule.SamplerConfig,
  params: Any,
  stats: dict[str, Array],
  root: Key[Array, ""],
  numbers: Int[Array, " b"],
  groups: Int[Array, " b"],
) -> Float[Array, "b d"]:
  """The memories of one call."""
  keys = rngs.keys(root, "sample/prior", numbers)
  width = stats["mean"].shape
  x0 = jax.vmap(lambda k: jax.random.normal(k, width))(keys)

  def apply(x, t, group):
    return network.apply({"params": params}, x, t, group)

  def pair(x, t):
    none = jnp.full_like(groups, network.groups)
    return guidance.pair(apply, x, t, groups, none)

  with jax.default_matmul_precision("highest"):
    x1 = samplers.sample(
      config, lambda x, t: apply(x, t, groups), x0, None, pair
    )
  return bank_lib.normalise(x1 * stats["scale"][None] + stats["mean"][None])


@functools.partial(jax.jit, static_argnums=2)
def _draw_groups(
  root: Key[Array, ""], numbers: Int[Array, " b"], counts: tuple[int, ...]
) -> Int[Array, " b"]:
  """Draws a group for each memory, by its number of rows."""
  keys = rngs.keys(root, "sample/group", numbers)
  shares = np.cumsum(np.array(counts) / sum(counts)).astype(np.float32)
  uniform = jax.vmap(jax.random.uniform)(keys)
  drawn = jnp.searchsorted(jnp.asarray(shares), uniform, side="right")
  # The shares may end a rounding below 1.
  last = np.flatnonzero(counts)[-1]
  return jnp.minimum(drawn, int(last)).astype(jnp.int32)


def load(workdir: paths.Path, width: int) -> Prior:
  """Loads the prior that a run's directory keeps.

  Args:
    workdir: The run's directory.
    width: That of the snippets that the network takes.

  Raises:
    ValueError: If there is none, or it does not fit the network.
  """
  folder = workdir / prior_rows.FOLDER
  if not checkpoint.exist(folder / "checkpoints"):
    raise ValueError(
      f"config.sample.draw='prior': no prior was trained in {workdir};"
      " --mode=prior with the same config trains one"
    )
  record, stats = prior_rows.load_record(folder / prior_rows.RECORD)
  if record.width != width:
    raise ValueError(
      f"config.sample.draw='prior': the prior in {folder} draws memories"
      f" {record.width} wide, the network takes {width}"
    )
  mesh = sharding.make_mesh(sharding.MeshConfig(data=-1, fsdp=1, tensor=1))
  step, params = checkpoint.load_part(
    folder / "checkpoints",
    "ema",
    lambda shapes: jax.tree.map(lambda _: sharding.replicated(mesh), shapes),
  )
  return Prior(record, stats, jax.tree.map(np.asarray, params), step)
