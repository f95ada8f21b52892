"""The training loop: all effects are here, all mathematics elsewhere.

The loop's contract, which tests depend on:
1. A dispatch moves the state; its metrics stay on the device.
2. At a log boundary the metrics of the previous interval are fetched, so the
   device never waits for the host.
3. Evaluation and checkpoint describe the same state, and only once all of its
   metrics are known to be finite.
4. The data iterator advances after the save.
"""

import contextlib
import dataclasses
import functools
import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from gmem_jax import progress as progress_lib, rngs
from gmem_jax.bank import bank as bank_lib
from gmem_jax.config import sections
from gmem_jax.data import pipeline, write_images
from gmem_jax.models import retrieval, transformer
from gmem_jax.models.encoders import protocols
from gmem_jax.parallel import processes, sharding
from gmem_jax.train import (
  checkpoint,
  dataset as dataset_lib,
  init_from,
  metrics,
  setup,
  state as train_state,
  step as train_step,
  tensorboard,
  wandb_board,
)

_log = logging.getLogger(__name__)

# Called at evaluations: (step, parameters) -> (numbers, pictures).
EvaluateFn = Callable[
  [int, Any], tuple[dict[str, float], dict[str, np.ndarray]]
]


class Preempted(Exception):
  """A signal asked training to stop; the state is saved."""


@dataclasses.dataclass(frozen=True)
class Run:
  """The fixed parts of a run.

  Attributes:
    workdir: Where checkpoints, metrics and pictures go.
    mesh: The devices of all processes.
    dataset: The encoded images.
    memory: What sampling needs, too.
    network: Of `setup.network`.
    retrieve: Of `setup.make_retrieve`; None without cross-attention.
    evaluate: Called at evaluations, or None.
    callbacks: Told the metrics, when they are written.
  """

  config: sections.Config
  workdir: pathlib.Path
  mesh: jax.sharding.Mesh
  dataset: dataset_lib.Dataset
  memory: setup.RunMemory
  network: transformer.FlowTransformer
  retrieve: retrieval.RetrieveFn | None
  evaluate: EvaluateFn | None
  callbacks: Sequence[metrics.Callback] = ()

  @property
  def bank(self) -> bank_lib.MemoryBank:
    """What the step is given: the rows to look up in, if it does; else all."""
    unit = self.memory.unit
    return self.memory.bank if unit is None else unit


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


def restore_or_init(
  run: Run, checkpoints: checkpoint.Checkpoints
) -> tuple[train_state.TrainState, dict[str, Any]]:
  """The newest readable checkpoint, or a fresh state: (state, progress)."""
  # Jitted, so that it is traced once for both its shapes and its values.
  init = jax.jit(
    train_state.make_init(
      run.network,
      run.memory.latent_shape,
      train_state.make_optimizer(run.config.optim),
      run.config.seed,
    )
  )
  shapes = jax.eval_shape(init)
  shardings = sharding.state_shardings(shapes, run.mesh)
  restored = checkpoints.restore(sharding.abstract(shapes, shardings))
  if restored is not None:
    _log.info("continuing from step %d", int(restored[0].step))
    return restored
  # Each shard is created on its own device: the whole state may fit on none.
  state = jax.jit(init, out_shardings=shardings)()
  if run.config.train.init_from:
    state = init_from.start(run.config, state, run.mesh)
  from clu import parameter_overview

  _log.info(
    "new run: %s parameters",
    f"{parameter_overview.count_parameters(state.params):,}",
  )
  return state, {"train_seconds": 0.0}


def train(run: Run) -> train_state.TrainState:
  """Trains to the last step, from wherever an earlier call stopped.

  Returns:
    The final state.

  Raises:
    Preempted: After SIGTERM, SIGINT or SIGHUP, once the state is saved.
    metrics.NonFiniteError: If a metric is NaN or infinite.
    ValueError: If the data or a checkpoint do not fit.
  """
  # First, as it may refuse what it is given.
  steps = board = None
  if processes.is_main():
    steps = run.config.log.profiled
    if run.config.log.wandb:
      board = wandb_board.Board(run.config, run.workdir)
  # From here on a signal waits for the end of a step: not even one that comes
  # while a checkpoint is read ends one process without the others.
  with processes.StopRequest() as stop, contextlib.ExitStack() as ending:
    checkpoints = checkpoint.Checkpoints(
      run.workdir / "checkpoints", run.config.checkpoint
    )
    ending.callback(checkpoints.close)
    state, progress = restore_or_init(run, checkpoints)
    writer = metrics.Writer(run.workdir, int(state.step), run.callbacks, board)
    ending.callback(writer.close)
    tracer = tensorboard.Tracer(steps, run.workdir / "profile")
    ending.callback(tracer.close)
    return _loop(run, state, progress, checkpoints, writer, tracer, stop)


def _loop(run, state, progress, checkpoints, writer, tracer, stop):
  """Steps, logs, evaluates and saves; see the contract above."""
  config, k = run.config, run.config.train.steps_per_dispatch
  step_fn = compile_step(run, jax.tree.map(lambda x: x.sharding, state))
  to_devices = sharding.batch_sharding(run.mesh, steps_axis=True)
  # Counted here too, as reading state.step would wait for the device.
  step = int(state.step)
  if step < config.train.steps:
    # Batches are addressed by the dispatch.
    if step % k:
      raise ValueError(
        f"config.train.steps_per_dispatch={k}: must divide {step}, the step at"
        " which this run goes on"
      )
    _log.info("compiling the training step")
  batches = pipeline.batches(_dataset(run), step // k, to_devices)
  trained = progress["train_seconds"]
  clock = metrics.Clock(step, trained, config.train.batch_size)
  line = progress_lib.Progress("train", step, config.train.steps)
  rates = train_state.learning_rates(config.optim, config.train.steps)
  interval, pending = metrics.Interval(), None

  def report(closed):
    """Fetches an interval's metrics, checks and writes them."""
    values, histograms = closed.fetch(), closed.fetch_histograms()
    values["train/learning_rate"] = float(rates[closed.step - 1])
    # Timed after the fetch: only now has the device taken these steps.
    values |= clock.lap(closed.step)
    writer.write_scalars(closed.step, values)
    writer.write_histograms(closed.step, histograms)
    line.report(
      closed.step, values["perf/steps_per_s"], {"loss": values["train/loss"]}
    )

  while step < config.train.steps:
    batch = next(batches)
    with tracer.dispatch(step):
      state, values = step_fn(state, batch, run.bank)
    # The first time it takes a while, in which the device does its first step.
    writer.open()
    interval.add(step, values)
    step += k
    tracer.reached(step, state)
    line.update(step)

    last = step >= config.train.steps
    # Asked once per dispatch, as all processes count the asking to stop at the
    # same one; and what stops here must be what is saved.
    stopping = stop.reached()
    save = last or stopping or step % config.checkpoint.every == 0
    evaluate = run.evaluate is not None and (
      last or bool(config.eval.every and step % config.eval.every == 0)
    )
    if step % config.train.log_every == 0 or save or evaluate:
      if pending is not None:
        report(pending)
      pending, interval = interval.close(step), metrics.Interval()
    # A state is neither shown nor saved before its metrics are known finite:
    # this is where the device waits.
    if pending is not None and (save or evaluate):
      report(pending)
      pending = None
    if evaluate:
      with clock.paused():
        _evaluate(run, step, state, clock.seconds, writer)
    if save:
      checkpoints.save(step, state, {"train_seconds": clock.seconds})
    # Asked again after the last evaluation, which may take long: what follows
    # training, a report, is not to begin then.
    if stopping or (last and stop.reached()):
      checkpoints.wait()
      line.close()
      raise Preempted(
        f"stopped by {stop.cause} at step {step}; the state is saved"
      )
  line.close()
  return state


def _dataset(run: Run):
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


def _evaluate(run, step, state, train_seconds, writer) -> None:
  """Evaluates the moving average and writes numbers and pictures."""
  # On all processes, since sampling is collective; one of them writes.
  numbers, pictures = run.evaluate(step, state.ema)
  numbers = {f"eval/{name}": value for name, value in numbers.items()}
  writer.write_scalars(step, numbers | {"perf/train_seconds": train_seconds})
  writer.write_images(step, pictures)
  writer.flush()
  shown = [f"{name} {value:.4g}" for name, value in numbers.items()]
  if processes.is_main():
    directory = run.workdir / "samples"
    directory.mkdir(exist_ok=True)
    for name, picture in pictures.items():
      path = directory / f"{name}_{step:07d}.png"
      write_images.save_png(path, picture)
      shown.append(str(path))
  _log.info("step %d  %s", step, "  ".join(shown))
