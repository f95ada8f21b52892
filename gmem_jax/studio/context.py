"""What all visitors share: the network, its banks, and a folder for files."""

import collections
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gradio as gr
import numpy as np

from gmem_jax.config import sections
from gmem_jax.files import errors
from gmem_jax.sample import (
  generator as generator_lib,
  host_bank,
  load as load_lib,
  search,
)
from gmem_jax.sample.generator import Generator
from gmem_jax.studio import catalogue as catalogue_lib, pictures, streaming

# Of all events that compute: one at a time, and the others wait in a queue.
DEVICE: dict[str, Any] = {"concurrency_id": "device", "concurrency_limit": 1}
# Events are for the page, and for no other program.
PRIVATE: dict[str, Any] = {"api_visibility": "private"}


@dataclasses.dataclass(frozen=True, eq=False)
class Studio:
  """What all visitors share.

  Attributes:
    generator: The network with the bank that the studio was started with.
    workdir: What was loaded; also what is watched.
    banks: Name -> path of other banks that visitors may choose.
    others: Name -> path of other runs.
    folder: Where uploads and downloads are until the end.
    stops: How often each visitor has stopped work.
  """

  generator: Generator
  workdir: pathlib.Path
  banks: Mapping[str, str]
  others: Mapping[str, str]
  folder: str
  stops: collections.Counter[str | None] = dataclasses.field(
    default_factory=collections.Counter
  )

  @property
  def has_run(self) -> bool:
    """Whether there are two sets of weights, as runs have."""
    return not self.generator.config.sample.network

  def other(self, name: str) -> Generator:
    """Another run, loaded when it is first asked for."""
    own = self.generator.config.sample
    return _load(self.others[name], f"sample.device_batch={own.device_batch}")

  def steps(self, name: str | None) -> list[int]:
    """The checkpoints of another run, or of the own one, as they are now."""
    if name is None:
      return load_lib.steps(self.workdir) if self.has_run else []
    return load_lib.steps(self.others[name])

  def current(self, visit: Generator | None) -> Generator:
    """A visitor's own generator, once the bank was edited."""
    return visit or self.generator

  def explain(self, error: Exception) -> str:
    """HTML for what does not fit, without folders of this machine."""
    if isinstance(error, streaming.StoppedError):
      return pictures.hint("Stopped.")
    names = {self.folder: "…", str(self.workdir): self.workdir.name}
    for name, path in {**self.banks, **self.others}.items():
      names |= {path: name, os.path.abspath(path): name}
    text = errors.describe(error)
    # Of one folder in another, the inner first.
    for path in sorted(names, key=len, reverse=True):
      text = text.replace(path, names[path])
    return pictures.error(text)

  def catalogue(self, visit: Generator | None) -> catalogue_lib.Catalogue:
    """The bank of a visitor, to look through."""
    return catalogue(self.current(visit))


def catalogue(generator: Generator) -> catalogue_lib.Catalogue:
  """A generator's bank, to look through."""
  side = generator.config.encoder.image_size
  return _catalogue(generator.source.require_bank(), side)


@functools.lru_cache(maxsize=2)
def _load(path: str, change: str) -> Generator:
  return load_lib.load(path, "sample.grid=0", change)


def with_weights(
  generator: Generator, weights: str, step: int | None = None
) -> Generator:
  """A run's generator with other weights, loaded when first asked for.

  Args:
    generator: Of a run.
    weights: Its moving average, "ema", or its parameters, "params".
    step: Of the checkpoint; by default the generator's own, which need not be
      the newest any more.

  Raises:
    ValueError: If there is no such checkpoint, or no more.
  """
  own = generator.source.info["step"]
  step = own if step is None else step
  if (weights, step) == (generator.config.sample.weights, own):
    return generator
  return _with_weights(generator.workdir, generator.config, weights, step)


@functools.lru_cache(maxsize=2)
def _with_weights(
  workdir: pathlib.Path, config: sections.Config, weights: str, step: int
) -> Generator:
  sample = dataclasses.replace(config.sample, weights=weights)
  other = dataclasses.replace(config, sample=sample)
  return generator_lib.from_config(other, workdir, step)


@functools.lru_cache(maxsize=8)
def _catalogue(bank: host_bank.HostBank, side: int) -> catalogue_lib.Catalogue:
  return catalogue_lib.Catalogue(bank, side)


@functools.lru_cache(maxsize=8)
def closeness(bank: host_bank.HostBank) -> np.ndarray:
  """See `search.closeness`; of a bank of one row, nothing."""
  if len(bank.rows) < 2:
    return np.ones(1, np.float32)
  return search.closeness(bank)


def busy(
  button: gr.Button,
  work: Callable[..., Any],
  inputs: Sequence[Any],
  outputs: Sequence[Any],
  begin: tuple[Callable[..., Any], Any] | None = None,
  **settings: Any,
) -> Any:
  """Connects a button with work, during which one sees that it takes no click.

  Args:
    button: Gets its words back when the work is done or has failed.
    work: See `gr.Button.click`, as for the rest.
    inputs: Of the work.
    outputs: Of the work.
    begin: Runs at once, also while others wait, and what it gives a value to.
    **settings: Of the work.

  Returns:
    The event after the work.
  """
  words = button.value
  quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden", **PRIVATE}
  first, given = begin or (lambda request: None, gr.State(None))

  def start(request: gr.Request) -> tuple[Any, Any]:
    return first(request), gr.Button("Working…", interactive=False)

  def end() -> gr.Button:
    return gr.Button(words, interactive=True)

  done = button.click(start, None, [given, button], **quiet).then(
    work, inputs, outputs, **settings, **PRIVATE
  )
  # Gradio refuses some values before the work; then comes nothing but this.
  done.failure(end, None, button, **quiet)
  return done.then(end, None, button, **quiet)


def runs(
  studio: Studio,
  start: gr.Button,
  stop: gr.Button,
  work: Callable[..., Iterator[Any]],
  inputs: Sequence[Any],
  outputs: Sequence[Any],
) -> None:
  """Connects two buttons with work on the device; whoever waits, waits there.

  `work` takes the function that tells whether it is stopped, and the values of
  the inputs.
  """
  # Not Gradio's way to cancel, which shows stopped work as a fault. Counted is
  # how often a visitor has stopped, so that work in the queue is stopped, too.
  ticket = gr.State(0)

  def begin(request: gr.Request) -> int:
    return studio.stops[request.session_hash]

  def run(request: gr.Request, ticket, *values) -> Iterator[Any]:
    session = request.session_hash
    yield from work(lambda: studio.stops[session] > ticket, *values)

  def end(request: gr.Request) -> None:
    studio.stops[request.session_hash] += 1

  busy(
    start,
    run,
    [ticket, *inputs],
    [*outputs],
    begin=(begin, ticket),
    show_progress="minimal",
    **DEVICE,
  )
  stop.click(end, None, None, queue=False, show_progress="hidden", **PRIVATE)
