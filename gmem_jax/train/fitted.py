"""What was fitted to a run's images is kept in the run's directory.

The tokenizer decodes what the network makes, and the projections make the
snippets that it knows: a checkpoint is worth nothing without them, and they
take a few megabytes. So a run samples after its data have gone.
"""

import dataclasses
import shutil

from gmem_jax.config import networks, sections
from gmem_jax.files import atomic, paths, weights
from gmem_jax.parallel import processes

FOLDER = "encoders"


def _paths(encoder: networks.EncoderConfig) -> dict[str, str]:
  """Key of the config -> path, of what the config has fitted."""
  fitted = {}
  if encoder.tokenizer == "patch_pca":
    fitted["tokenizer_weights"] = encoder.tokenizer_weights
  if encoder.snippet_weights:
    fitted["snippet_weights"] = encoder.snippet_weights
  return fitted


def _kept(workdir: paths.Path, key: str) -> paths.Path:
  return workdir / FOLDER / key.removesuffix("_weights")


def keep(config: sections.Config, workdir: paths.Path) -> None:
  """Copies what was fitted into a run; all processes call it.

  Raises:
    ValueError: If the run keeps another one: its data has changed.
  """
  if processes.is_main():
    for key, path in _paths(config.encoder).items():
      _copy(key, path, _kept(workdir, key))
  processes.wait_for_all("fitted")


def _copy(key: str, path: str, copy: paths.Path) -> None:
  if not copy.exists():
    source = paths.local(path)
    with atomic.replacing(copy) as temporary:
      copied = shutil.copytree if source.is_dir() else shutil.copyfile
      copied(source, temporary)
    return
  here, there = (
    weights.read_metadata(each)["source"]["sha256"] for each in (path, copy)
  )
  if here != there:
    raise ValueError(
      f"config.encoder.{key}={path!r} was fitted to other images than"
      f" {copy}, which this run was trained with. Take another --workdir."
    )


def own(config: sections.Config, workdir: paths.Path) -> sections.Config:
  """The config with what the run itself keeps in place of what was fitted.

  Raises:
    ValueError: If the run was trained without what the config names.
  """
  keys = "tokenizer_weights", "snippet_weights"
  kept = {key: str(_kept(workdir, key)) for key in keys}
  kept = {key: path for key, path in kept.items() if paths.exists(path)}
  encoder = dataclasses.replace(config.encoder, **kept)
  if encoder.snippet_weights and "snippet_weights" not in kept:
    raise ValueError(
      f"config.encoder.snippet_weights={encoder.snippet_weights!r}: the run in"
      f" {workdir} was trained without"
    )
  return dataclasses.replace(config, encoder=encoder)
