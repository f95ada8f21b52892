"""A run: the network, what it is trained on, and its jitted step."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from gmem_jax import rngs
from gmem_jax.bank import bank as bank_lib
from gmem_jax.config import sections
from gmem_jax.data import pipeline
from gmem_jax.files import paths
from gmem_jax.models import retrieval, transformer
from gmem_jax.models.encoders import protocols
from gmem_jax.parallel import sharding
from gmem_jax.train import (
  dataset as dataset_lib,
  loop,
  metrics,
  setup,
  state as train_state,
  step as train_step,
)


@dataclasses.dataclass(frozen=True)
class Run:
  """The fixed parts of a run; for those not named here, see `loop.Trainable`.

  Attributes:
    dataset: The encoded images.
    memory: What sampling needs, too.
    network: Of `setup.network`.
    retrieve: Of `setup.make_retrieve`; None without cross-attention.
  """

  name = "train"

  config: sections.Config
  workdir: paths.Path
  mesh: jax.sharding.Mesh
  dataset: dataset_lib.Dataset
  memory: setup.RunMemory
  network: transformer.FlowTransformer
  retrieve: retrieval.RetrieveFn | None
  evaluate: loop.EvaluateFn | None
  callbacks: Sequence[metrics.Callback] = ()

  @property
  def bank(self) -> bank_lib.MemoryBank:
    """What the step is given: the rows to look up in, if it does; else all."""
    unit = self.memory.unit
    return self.memory.bank if unit is None else unit

  def make_init(self) -> Callable[[], train_state.TrainState]:
    """See `loop.Trainable`."""
    return train_state.make_init(
      self.network,
      self.memory.latent_shape,
      train_state.make_optimizer(self.config.optim),
      self.config.seed,
    )

  def make_step(self, shardings: Any) -> Callable[[Any, Any], Any]:
    """See `loop.Trainable`."""
    step_fn = compile_step(self, shardings)
    return lambda state, batches: step_fn(state, batches, self.bank)

  def batches(self, dispatch: int) -> Iterator[Any]:
    """See `loop.Trainable`."""
    to_devices = sharding.batch_sharding(self.mesh, steps_axis=True)
    return pipeline.batches(make_dataset(self), dispatch, to_devices)


def compile_step(run: Run, shardings: Any) -> train_step.StepFn:
  """Jits the training step of a run, its encoder included; see `jit_step`."""
  steps_fn = jit_step(
    run.config,
    run.network,
    run.memory.stats,
    run.mesh,
    shardings,
    run.bank,
    run.retrieve,
  )
  encoder = sharding.place(run.dataset.encoder, sharding.replicated(run.mesh))
  return lambda state, batches, bank: steps_fn(state, batches, bank, encoder)


def jit_step(
  config: sections.Config,
  network: transformer.FlowTransformer,
  stats: protocols.LatentStats,
  mesh: jax.sharding.Mesh,
  shardings: Any,
  bank: bank_lib.MemoryBank,
  retrieve: retrieval.RetrieveFn | None,
) -> Any:
  """Jits the training step over the mesh.

  Args:
    config: Decides optimizer, loss and seed.
    network: Without sharding constraints; they are added.
    stats: Normalise the latents.
    mesh: Where the step runs.
    shardings: Those of the state.
    bank: The bank that the step will be given, or its shapes with shardings;
      unit rows for a network with cross-attention (`setup.lookup_bank`).
    retrieve: Looks up rows of that bank; see `train_step.make_train_step`.

  Returns:
    (state, batches, bank, encoder) -> (state, metrics [k]), jitted. The encoder
    may be None; see `train_step.make_train_step`.
  """
  gather = None
  if config.mesh.gather == "step":
    gather = functools.partial(sharding.gather, mesh=mesh)
  step_fn = train_step.make_train_step(
    network.clone(constrain=sharding.place_batch(mesh)),
    train_state.make_optimizer(config.optim),
    config.loss,
    stats,
    seed=config.seed,
    ema_decay=config.train.ema_decay,
    accumulation=config.train.accumulation,
    retrieve=retrieve,
    gather=gather,
  )
  where, everywhere = bank.sharding, sharding.replicated(mesh)
  batches = sharding.batch_sharding(mesh, steps_axis=True)
  return jax.jit(
    train_step.repeat(step_fn),
    # The new state takes the old one's memory, so there is only ever one.
    donate_argnums=0,
    # The bank is an argument: a closed-over array would be compiled in.
    in_shardings=(shardings, batches, where, everywhere),
    out_shardings=(shardings, everywhere),
  )


def make_dataset(run: Run) -> Any:
  """This process's endless dataset."""
  config, records = run.config, run.dataset.train.records
  part, parts = sharding.process_part(run.mesh, config.train.batch_size)
  mirror_seed = None
  if config.data.mirror:
    mirror_seed = rngs.int32(config.seed, "data/mirror")
  return pipeline.make_dataset(
    records,
    fields=train_step.fields(
      records.spec(),
      conditioned=config.model.conditioning != "none",
      project=config.loss.projection_weight > 0,
    ),
    mirror_seed=mirror_seed,
    independent_flips=config.data.independent_flips,
    seed=rngs.int32(config.seed, "data/shuffle"),
    batch_size=config.train.batch_size,
    steps_per_dispatch=config.train.steps_per_dispatch,
    process_index=part,
    process_count=parts,
  )
