"""The training loop: all effects are here, all mathematics elsewhere.

The loop's contract, which tests depend on:
1. A dispatch moves the state; its metrics stay on the device.
2. At a log boundary the metrics of the interval before are fetched, so the
   device never waits for the host.
3. Evaluation and checkpoint describe the same state, and only after all of its
   metrics were found finite.
4. The data iterator advances after the save.
"""

import contextlib
import dataclasses
import logging
import pathlib
import signal
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from clu import parameter_overview

from gmem_jax import (
  assemble,
  checkpoint,
  config as config_lib,
  images,
  init_from,
  metrics,
  optim,
  retrieval,
  rngs,
  sharding,
  train_state,
  train_step,
)
from gmem_jax.bank import placement
from gmem_jax.data import pipeline
from gmem_jax.models import conditioning

_log = logging.getLogger(__name__)

# Called at evaluations: (step, parameters) -> (numbers, pictures).
EvaluateFn = Callable[
  [int, Any], tuple[dict[str, float], dict[str, np.ndarray]]
]


class Preempted(Exception):
  """SIGTERM arrived; the state is saved."""


class StopRequest:
  """Notes SIGTERM, so that the loop can save before it ends."""

  def __init__(self):
    self.received = False

  def __enter__(self) -> "StopRequest":
    self._previous = signal.signal(signal.SIGTERM, self._handle)
    return self

  def __exit__(self, *_) -> None:
    signal.signal(signal.SIGTERM, self._previous)

  def _handle(self, *_) -> None:
    self.received = True


@dataclasses.dataclass(frozen=True)
class Run:
  """The fixed parts of a run.

  Attributes:
    config: Its config.
    workdir: Its directory.
    mesh: Its devices.
    dataset: Its images, encoded.
    memory: What sampling needs.
    evaluate: Called at evaluations, or None.
  """

  config: config_lib.Config
  workdir: pathlib.Path
  mesh: jax.sharding.Mesh
  dataset: assemble.Dataset
  memory: assemble.Memory
  evaluate: EvaluateFn | None


def compile_step(run: Run, shardings: Any) -> train_step.StepFn:
  """Jits the training step over the mesh.

  Args:
    run: The run.
    shardings: Shardings of the state.

  Returns:
    (state, batches, bank) -> (state, metrics [k]); the state is donated, and
    the bank is of `assemble.step_bank`.
  """
  config, recall = run.config, None
  if conditioning.uses_cross(config.model.conditioning):
    where = placement.Placement(run.mesh)
    recall = retrieval.make_recall(config.retrieval, where, config.seed)
  step_fn = train_step.make_train_step(
    assemble.network(config, run.memory),
    optim.make_optimizer(config.optim),
    config.loss,
    run.memory.stats,
    seed=config.seed,
    ema_decay=config.train.ema_decay,
    recall=recall,
  )
  everywhere = sharding.replicated(run.mesh)
  batches = sharding.batch_sharding(run.mesh, steps_axis=True)
  return jax.jit(
    train_step.repeat(step_fn),
    donate_argnums=0,
    in_shardings=(shardings, batches, everywhere),
    out_shardings=(shardings, everywhere),
  )


def restore_or_init(
  run: Run, checkpoints: checkpoint.Checkpoints
) -> tuple[train_state.TrainState, dict[str, Any]]:
  """The newest readable checkpoint, or a fresh state, sharded either way.

  Args:
    run: The run.
    checkpoints: Its checkpoints.

  Returns:
    (state, progress).
  """
  init = assemble.make_init(run.config, run.memory)
  shapes = jax.eval_shape(init)
  shardings = sharding.state_shardings(shapes, run.mesh)
  restored = checkpoints.restore(sharding.abstract(shapes, shardings))
  if restored is not None:
    _log.info("continuing from step %d", int(restored[0].step))
    return restored
  state = jax.jit(init, out_shardings=shardings)()
  if run.config.train.init_from:
    state = init_from.start(run.config, state, run.mesh)
  _log.info(
    "new run: %s parameters",
    f"{parameter_overview.count_parameters(state.params):,}",
  )
  return state, {"train_seconds": 0.0}


def train(run: Run) -> train_state.TrainState:
  """Trains until the last step, from wherever an earlier call stopped.

  Args:
    run: The run.

  Returns:
    The final state.

  Raises:
    Preempted: After SIGTERM, once the state is saved.
    metrics.NonFiniteError: If a metric is NaN or infinite.
    ValueError: If the data or a checkpoint do not fit.
  """
  checkpoints = checkpoint.Checkpoints(
    run.workdir / "checkpoints", run.config.checkpoint
  )
  state, progress = restore_or_init(run, checkpoints)
  writer = metrics.Writer(run.workdir, int(state.step))
  try:
    with StopRequest() as stop:
      return _loop(run, state, progress, checkpoints, writer, stop)
  finally:
    checkpoints.close()
    writer.close()


def _loop(run, state, progress, checkpoints, writer, stop):
  """Steps, logs, evaluates and saves; see the contract above."""
  config, k = run.config, run.config.train.steps_per_dispatch
  step_fn = compile_step(run, jax.tree.map(lambda x: x.sharding, state))
  to_devices = sharding.batch_sharding(run.mesh, steps_axis=True)
  step = int(state.step)
  batches = pipeline.batches(_dataset(run), step // k)
  bank = assemble.step_bank(config, run.memory.bank)
  clock = Clock(step, progress["train_seconds"], config.train.batch_size)
  line = metrics.Progress("train", step, config.train.steps)
  interval, late = metrics.Interval(), None

  def report(closed):
    """Fetches an interval's metrics, checks and writes them."""
    means = closed.fetch()
    rates = clock.lap(closed.step)  # now the device has taken these steps
    writer.write_scalars(closed.step, means | rates)
    line.report(rates["perf/steps_per_s"], {"loss": means["train/loss"]})

  while step < config.train.steps:
    batch = sharding.to_global(next(batches), to_devices)
    state, values = step_fn(state, batch, bank)
    interval.add(step, values)
    step += k
    line.update(step)

    last = step >= config.train.steps
    stopping = stop.received  # read once: what is announced is what is saved
    save = last or stopping or step % config.checkpoint.every == 0
    evaluate = run.evaluate is not None and (
      last or bool(config.eval.every and step % config.eval.every == 0)
    )
    if step % config.train.log_every == 0 or save or evaluate:
      if late is not None:
        report(late)
      late = interval.close(step)
    if late is not None and (save or evaluate):
      report(late)
      late = None
    if evaluate:
      with clock.paused():
        _evaluate(run, step, state, clock.seconds, writer)
    if save:
      checkpoints.save(step, state, {"train_seconds": clock.seconds})
    if stopping and not last:
      checkpoints.wait()
      line.close()
      raise Preempted(f"stopped by SIGTERM at step {step}; the state is saved")
  line.close()
  return state


def _dataset(run: Run):
  """This process's endless dataset."""
  config = run.config
  return pipeline.make_dataset(
    run.dataset.train.records,
    seed=rngs.int32(config.seed, "data/shuffle"),
    batch_size=config.train.batch_size,
    steps_per_dispatch=config.train.steps_per_dispatch,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )


def _evaluate(run, step, state, train_seconds, writer) -> None:
  """Evaluates the moving average and writes what comes of it."""
  numbers, pictures = run.evaluate(step, state.ema)
  numbers = {f"eval/{name}": value for name, value in numbers.items()}
  writer.write_scalars(step, numbers | {"perf/train_seconds": train_seconds})
  writer.write_images(step, pictures)
  writer.flush()
  if jax.process_index() == 0:
    directory = run.workdir / "samples"
    directory.mkdir(exist_ok=True)
    for name, picture in pictures.items():
      images.save_png(directory / f"{name}_{step:07d}.png", picture)
  shown = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
  _log.info("step %d  %s", step, shown)


class Clock:
  """Seconds of training, over all restarts, evaluation left out."""

  def __init__(self, step: int, seconds: float, batch_size: int):
    """Starts to count.

    Args:
      step: Steps already taken.
      seconds: Seconds that took.
      batch_size: Images a step.
    """
    self._start = time.monotonic() - seconds
    self._batch_size = batch_size
    self._lap = step, seconds

  @property
  def seconds(self) -> float:
    """Seconds of training so far."""
    return time.monotonic() - self._start

  def lap(self, step: int) -> dict[str, float]:
    """Rates since the last lap.

    Args:
      step: Steps taken so far.
    """
    (first, then), now = self._lap, self.seconds
    self._lap = step, now
    per_second = (step - first) / max(now - then, 1e-9)
    return {
      "perf/steps_per_s": per_second,
      "perf/images_per_s": per_second * self._batch_size,
      "perf/train_seconds": now,
    }

  @contextlib.contextmanager
  def paused(self):
    """Leaves out the time spent inside."""
    began = time.monotonic()
    yield
    self._start += time.monotonic() - began
