"""What all visitors share: the network, its banks, and a folder for files."""

import collections
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gradio as gr
import numpy as np

from gmem_jax.config import sections
from gmem_jax.files import errors, paths
from gmem_jax.sample import (
  generator as generator_lib,
  host_bank,
  load as load_lib,
  search,
)
from gmem_jax.sample.generator import Generator
from gmem_jax.studio import (
  catalogue as catalogue_lib,
  line as line_lib,
  pictures,
)

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
    line: Who waits for the device.
  """

  generator: Generator
  workdir: paths.Path
  banks: Mapping[str, str]
  others: Mapping[str, str]
  folder: str
  stops: collections.Counter[str | None] = dataclasses.field(
    default_factory=collections.Counter
  )
  line: line_lib.WaitingLine = dataclasses.field(
    default_factory=line_lib.WaitingLine
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
  workdir: paths.Path, config: sections.Config, weights: str, step: int
) -> Generator:
  sample = dataclasses.replace(config.sample, weights=weights)
  other = dataclasses.replace(config, sample=sample)
  return generator_lib.from_config(other, workdir, step)


def with_bank(generator: Generator, path: str) -> Generator:
  """A generator with another bank; the last two are kept, and not read again.

  Raises:
    ValueError: If the bank does not fit.
  """
  return _with_bank(_Same(generator), path)


class _Same:
  """A generator as a key: equal to itself alone, as it has arrays."""

  def __init__(self, generator: Generator):
    self.generator = generator

  def __eq__(self, other: object) -> bool:
    return isinstance(other, _Same) and other.generator is self.generator

  def __hash__(self) -> int:
    return id(self.generator)


@functools.lru_cache(maxsize=2)
def _with_bank(same: _Same, path: str) -> Generator:
  return same.generator.with_bank(path)


@functools.lru_cache(maxsize=8)
def _catalogue(bank: host_bank.HostBank, side: int) -> catalogue_lib.Catalogue:
  return catalogue_lib.Catalogue(bank, side)


@functools.lru_cache(maxsize=8)
def closeness(bank: host_bank.HostBank) -> np.ndarray:
  """See `search.closeness`; of a bank of one row, nothing."""
  if len(bank.rows) < 2:
    return np.ones(1, np.float32)
  return search.closeness(bank)


def waiting(name: str) -> gr.HTML:
  """Where `busy` says how long a call of the tab `name` waits."""
  return gr.HTML("", visible=False, elem_id=f"{name}-wait")


def busy(
  studio: Studio,
  button: gr.Button,
  wait: gr.HTML,
  work: Callable[..., Any],
  inputs: Sequence[Any],
  outputs: Sequence[Any],
  begin: tuple[Callable[..., Any], Any] | None = None,
) -> Any:
  """Connects a button with work on the device; whoever waits, sees how long.

  Args:
    studio: Its line is joined at the click, and left after the work.
    button: Takes no click meanwhile, and says so.
    wait: See `waiting`.
    work: Takes the key in the line, and the values of the inputs.
    inputs: Of the work.
    outputs: Of the work.
    begin: Runs at once, also while others wait, and what it gives a value to.

  Returns:
    The event after the work.
  """
  words, kind = button.value, str(button.elem_id)
  quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden", **PRIVATE}
  first, given = begin or (lambda request: None, gr.State(None))
  timer = gr.Timer(1, active=False)

  def tell(request: gr.Request) -> tuple[Any, Any]:
    found = studio.line.wait((request.session_hash, kind))
    text = line_lib.words(found)
    html = pictures.hint(text, live=True) if text else ""
    return (
      gr.HTML(html, visible=bool(text)),
      gr.Timer(active=found is not None),
    )

  def start(request: gr.Request) -> tuple[Any, ...]:
    studio.line.join((request.session_hash, kind))
    taken = gr.Button("Working…", interactive=False)
    return first(request), taken, *tell(request)

  def run(request: gr.Request, *values: Any) -> Iterator[Any]:
    key = request.session_hash, kind
    with studio.line.turn(key):
      yield from work(key, *values)

  def end(request: gr.Request) -> tuple[Any, ...]:
    studio.line.leave((request.session_hash, kind))
    return gr.Button(words, interactive=True), *tell(request)

  done = button.click(start, None, [given, button, wait, timer], **quiet).then(
    run, inputs, outputs, show_progress="hidden", **DEVICE, **PRIVATE
  )
  timer.tick(tell, None, [wait, timer], **quiet)
  # Gradio refuses some values before the work; then comes nothing but this.
  done.failure(end, None, [button, wait, timer], **quiet)
  return done.then(end, None, [button, wait, timer], **quiet)


def runs(
  studio: Studio,
  start: gr.Button,
  stop: gr.Button,
  wait: gr.HTML,
  work: Callable[..., Iterator[Any]],
  inputs: Sequence[Any],
  outputs: Sequence[Any],
) -> None:
  """Connects two buttons with work on the device; see `busy`.

  `work` takes a function that is told what part is done, and tells whether it
  is stopped; and the values of the inputs. The first output is its status.
  """
  # Not Gradio's way to cancel, which shows stopped work as a fault. Counted is
  # how often a visitor has stopped, so that work in the queue is stopped, too.
  ticket = gr.State(0)

  def begin(request: gr.Request) -> int:
    return studio.stops[request.session_hash]

  def run(key: line_lib.Key, ticket, *values) -> Iterator[Any]:
    def stopped(done: float) -> bool:
      studio.line.tell(key, done)
      return studio.stops[key[0]] > ticket

    # Before the first image comes, a network may have to be loaded.
    yield pictures.bar(0, "It begins."), *[gr.skip()] * (len(outputs) - 1)
    yield from work(stopped, *values)

  def end(request: gr.Request) -> None:
    studio.stops[request.session_hash] += 1

  busy(
    studio, start, wait, run, [ticket, *inputs], outputs, begin=(begin, ticket)
  )
  stop.click(end, None, None, queue=False, show_progress="hidden", **PRIVATE)
