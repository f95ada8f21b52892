"""Metrics and pictures on Weights & Biases, the extra `wandb`."""

import uuid
from collections.abc import Mapping

import numpy as np

from gmem_jax.config import resolve, sections
from gmem_jax.files import atomic, paths

# Tells the run there which one this directory continues.
RECORD = "wandb.json"


class Board:
  """A run there, which goes on where this directory's run goes on.

  Its steps only grow: what a killed run wrote after its last checkpoint stays.
  """

  def __init__(self, config: sections.Config, workdir: paths.Path):
    """Starts or continues the run.

    Raises:
      ModuleNotFoundError: If wandb is not installed.
      ValueError: If it refuses the project, or nobody is logged in.
    """
    try:
      import wandb
    except ModuleNotFoundError:
      raise ModuleNotFoundError(
        f"config.log.wandb={config.log.wandb!r} needs wandb:"
        " pip install 'gmem_jax[wandb]'"
      ) from None
    path = workdir / RECORD
    if not path.exists():
      atomic.write_json(path, {"id": uuid.uuid4().hex[:12]})
    self._image = wandb.Image
    try:
      self._run = wandb.init(
        project=config.log.wandb,
        dir=workdir,
        name=workdir.name,
        id=atomic.read_json(path, {"id": str})["id"],
        resume="allow",
        config=resolve.to_json(config),
      )
    except wandb.Error as error:
      raise ValueError(
        f"config.log.wandb={config.log.wandb!r}: {error}"
      ) from None

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Writes the numbers of a step by name."""
    self._run.log(dict(scalars), step=step)

  def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    """Writes uint8 pictures [H, W, channels] by name."""
    pictures = {
      name: self._image(image[..., 0] if image.shape[-1] == 1 else image)
      for name, image in images.items()
    }
    self._run.log(pictures, step=step)

  def close(self) -> None:
    """Waits until all is sent, or in its file."""
    self._run.finish()
