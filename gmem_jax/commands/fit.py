"""Training as a function: for Python, and for `--mode=train`."""

import os
from collections.abc import Sequence

from gmem_jax.commands import train
from gmem_jax.config import sections
from gmem_jax.files import paths
from gmem_jax.parallel import lock
from gmem_jax.train import metrics


def fit(
  config: sections.Config,
  workdir: str | os.PathLike,
  callbacks: Sequence[metrics.Callback] = (),
) -> None:
  """Trains a run as `--mode=train` does, or goes on where one stopped.

  Args:
    config: Of `gmem_jax.get_config`.
    workdir: The run's directory; made if need be.
    callbacks: Each is called with (step, metrics by name) whenever metrics are
      written, on process 0. What one raises ends the training; a checkpoint is
      not written then.

  Raises:
    ValueError: If the directory belongs to a run of another config, or the data
      do not fit; names the key.
    gmem_jax.train.loop.Preempted: After SIGTERM, SIGINT or SIGHUP, once the
      state is saved: the same call continues.
    gmem_jax.train.metrics.NonFiniteError: If a metric is NaN or infinite.
  """
  path = paths.of(os.path.expanduser(workdir))
  with lock.held(path, "--workdir"):
    train.train_mode(config, path, callbacks)
