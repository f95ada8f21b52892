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
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from gmem_jax import progress as progress_lib
from gmem_jax.config import sections
from gmem_jax.data import write_images
from gmem_jax.files import paths
from gmem_jax.parallel import processes, sharding
from gmem_jax.train import (
  checkpoint,
  init_from,
  metrics,
  state as train_state,
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


@runtime_checkable
class Trainable(Protocol):
  """What the loop trains: a network on images (`run.Run`), or a prior.

  Attributes:
    name: What the line of progress is called.
    config: Its sections `train`, `optim`, `checkpoint`, `eval` and `log` say
      how.
    workdir: Where checkpoints, metrics and pictures go.
    mesh: The devices of all processes.
    evaluate: Called at evaluations, or None.
    callbacks: Told the metrics, when they are written.
  """

  @property
  def name(self) -> str: ...  # noqa: D102
  @property
  def config(self) -> sections.Config: ...  # noqa: D102
  @property
  def workdir(self) -> paths.Path: ...  # noqa: D102
  @property
  def mesh(self) -> jax.sharding.Mesh: ...  # noqa: D102
  @property
  def evaluate(self) -> EvaluateFn | None: ...  # noqa: D102
  @property
  def callbacks(self) -> Sequence[metrics.Callback]: ...  # noqa: D102

  def make_init(self) -> Callable[[], train_state.TrainState]:
    """Makes the function that creates the state at step 0; pure."""
    ...

  def make_step(self, shardings: Any) -> Callable[[Any, Any], Any]:
    """Jits (state, batch of a dispatch) -> (state, metrics [k]).

    `shardings` are those of the state, which is donated.
    """
    ...

  def batches(self, dispatch: int) -> Iterator[Any]:
    """The batches from a dispatch on, without end."""
    ...


def restore_or_init(
  run: Trainable, checkpoints: checkpoint.Checkpoints
) -> tuple[train_state.TrainState, dict[str, Any]]:
  """The newest readable checkpoint, or a fresh state: (state, progress)."""
  # Jitted, so that it is traced once for both its shapes and its values.
  init = jax.jit(run.make_init())
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


def train(run: Trainable) -> train_state.TrainState:
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
  step_fn = run.make_step(jax.tree.map(lambda x: x.sharding, state))
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
  batches = run.batches(step // k)
  trained = progress["train_seconds"]
  clock = metrics.Clock(step, trained, config.train.batch_size)
  line = progress_lib.Progress(run.name, step, config.train.steps)
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
      state, values = step_fn(state, batch)
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
      # Before: what a killed run goes on from has all its numbers.
      writer.flush_scalars()
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
