"""The prior: a small flow on the memory snippets of a bank, trained by `loop`.

It learns the directions of the rows, unit vectors, which are all that a network
knows of them: centred, and divided by one number, their standard deviation over
all coordinates. Neither a scale for each coordinate nor whitening does as well:
they make much of what hardly varies. The network predicts the rows from x_t:
unlike a velocity, such a prediction need not carry the noise of all coordinates
through a narrow network.

Shapes: m bank rows, d snippet width, b batch, k steps of a dispatch.

Source: Li et al., "Return of unconditional generation" (RCG, arXiv 2312.03701);
path and loss are those of `diffusion`.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gmem_jax import rngs
from gmem_jax.bank import (
  bank as bank_lib,
  files as bank_files,
  sharding as bank_sharding,
)
from gmem_jax.config import sections
from gmem_jax.diffusion import losses
from gmem_jax.files import paths
from gmem_jax.parallel import sharding
from gmem_jax.train import (
  metrics,
  prior_rows,
  state as train_state,
  step as train_step,
)

LOSS = losses.LossConfig(
  path="linear",
  prediction="data",
  weighting="velocity",
  time="lognormal",
  cosine=False,
  projection_weight=0.0,
  train_eps=None,
)


@dataclasses.dataclass(frozen=True)
class PriorRun:
  """The fixed parts of a prior's training; see `loop.Trainable`."""

  name = "prior"
  evaluate = None

  config: sections.Config
  workdir: paths.Path
  mesh: jax.sharding.Mesh
  rows: prior_rows.Rows
  record: prior_rows.Record
  callbacks: Sequence[metrics.Callback] = ()

  def make_init(self) -> Callable[[], train_state.TrainState]:
    """See `loop.Trainable`."""
    network, width = self.record.network(), self.record.width
    tx = train_state.make_optimizer(self.config.optim)

    def init():
      inputs = jnp.zeros((1, width)), jnp.zeros(1), jnp.zeros(1, jnp.int32)
      key = rngs.key(self.config.seed, "prior/init")
      return train_state.at_start(network.init(key, *inputs)["params"], tx)

    return init

  def make_step(self, shardings: Any) -> Callable[[Any, Any], Any]:
    """See `loop.Trainable`; a batch is drawn in the step itself."""
    step_fn, length = make_step(self), self.config.train.steps_per_dispatch
    steps_fn = jax.jit(
      lambda state, rows: jax.lax.scan(
        lambda s, _: step_fn(s, rows), state, length=length
      ),
      donate_argnums=0,
      in_shardings=(shardings, None),
      out_shardings=(shardings, sharding.replicated(self.mesh)),
    )
    return lambda state, batch: steps_fn(state, self.rows)

  def batches(self, dispatch: int) -> Iterator[Any]:
    """See `loop.Trainable`."""
    return itertools.repeat(None)


def make_step(
  run: PriorRun,
) -> Callable[[train_state.TrainState, prior_rows.Rows], Any]:
  """Makes the training step, (state, rows) -> (state, metrics); pure.

  Rows are drawn with replacement; the step addresses every draw.
  """
  config, network = run.config, run.record.network()
  place = sharding.place_batch(run.mesh)
  seed, batch = config.seed, config.train.batch_size

  def loss_fn(params, draws):
    x1, x0, t, group = draws
    return losses.flow_loss(
      LOSS,
      lambda x, t: (network.apply({"params": params}, x, t, group), None),  # pyright: ignore
      x1,
      x0,
      t,
    )

  descend = train_step.make_descent(
    jax.value_and_grad(loss_fn, has_aux=True),
    train_state.make_optimizer(config.optim),
    config.train.ema_decay,
  )

  def step_fn(state, rows):
    def key(name):
      return rngs.key(seed, f"prior/{name}", state.step)

    drawn = jax.random.randint(key("row"), (batch,), 0, rows.bank.size)
    x1 = bank_lib.snippets(rows.bank, drawn) - rows.mean[None]
    x1 = place(x1 / rows.scale[None])
    x0 = jax.random.normal(key("noise"), x1.shape)
    t = losses.sample_time(LOSS, key("time"), batch)
    dropped = jax.random.bernoulli(
      key("dropout"), config.prior.group_dropout, (batch,)
    )
    none = len(run.record.groups)
    group = jnp.where(dropped, none, rows.groups[drawn])
    return descend(state, (x1, x0, t, group))

  return step_fn


def make_run(
  config: sections.Config,
  workdir: paths.Path,
  stored: bank_files.Stored,
  classes: Sequence[str],
  callbacks: Sequence[metrics.Callback] = (),
) -> PriorRun:
  """Puts a prior's training together, in a folder of the run's directory.

  Args:
    config: The run's.
    workdir: The run's directory.
    stored: The bank.
    classes: The class of each row, "" for none; () where they are not known.
    callbacks: Told the metrics, when they are written.

  Raises:
    ValueError: If the bank has too few rows, or they are all alike; if the
      folder has a prior of another bank or config; or the batch does not divide
      over the mesh.
  """
  prior, mesh = config.prior, sharding.make_mesh(config.mesh)
  if prior.batch_size % (ways := sharding.batch_ways(mesh)):
    raise ValueError(
      f"config.prior.batch_size={prior.batch_size}: must be a multiple of the"
      f" mesh's data x fsdp = {ways}"
    )
  bank = stored.bank
  if isinstance(bank, bank_lib.LowRankBank):
    bank = bank_lib.MemoryBank(bank_lib.decode(bank))
  mean, scale = prior_rows.statistics(bank)
  groups, numbers, counts = prior_rows.group(classes, bank.size)
  record = prior_rows.Record(
    width=bank.width,
    digest=stored.info.digest,
    rows=bank.size,
    groups=groups,
    counts=counts,
    seed=config.seed,
    prior=prior,
  )
  prior_rows.claim(
    workdir / prior_rows.FOLDER, record, {"mean": mean, "scale": scale}
  )
  everywhere = sharding.replicated(mesh)
  rows = prior_rows.Rows(
    bank_sharding.place(bank, mesh, config.bank.placement),
    *sharding.place((numbers, mean, scale), everywhere),
  )
  own = _own_config(config)
  return PriorRun(
    own, workdir / prior_rows.FOLDER, mesh, rows, record, callbacks
  )


def _own_config(config: sections.Config) -> sections.Config:
  """The config by which the loop trains the prior."""
  prior = config.prior
  train = dataclasses.replace(
    config.train,
    steps=prior.steps,
    batch_size=prior.batch_size,
    ema_decay=prior.ema_decay,
    steps_per_dispatch=math.gcd(config.train.steps_per_dispatch, prior.steps),
    init_from="",
  )
  optim = dataclasses.replace(
    config.optim,
    learning_rate=prior.learning_rate,
    schedule="cosine",
    warmup_steps=prior.steps // 20,
    decay_steps=prior.steps,
  )
  return dataclasses.replace(config, train=train, optim=optim)
