"""A disk without room: what each library makes of it, and what we do."""

import contextlib
import resource

import jax.numpy as jnp
import numpy as np
import pytest

from gmem_jax.data import write_images
from gmem_jax.files import atomic, disk, weights
from gmem_jax.train import tensorboard

LIMIT = 50_000  # bytes of a file
ARRAY = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)


@contextlib.contextmanager
def limited():
  """This process cannot write files of more than `LIMIT` bytes."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, hard))
  yield
  resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def no_room():
  with limited():
    yield


def save_npz(path):
  with atomic.replacing(path) as temporary:
    np.savez(temporary, ARRAY)


def save_npy(path):
  with atomic.replacing(path) as temporary, temporary.open("wb") as file:
    np.save(file, ARRAY)


def convert(file_format):
  def save(path):
    weights.save_converted(path, {"params": {"x": ARRAY}}, {}, file_format)

  return save


@pytest.mark.parametrize(
  "save",
  [
    lambda path: atomic.write_text(path, "x" * 2 * LIMIT),
    lambda path: write_images.save_png(path, ARRAY),
    save_npz,
    save_npy,
    convert("safetensors"),
    convert("orbax"),
  ],
  ids=["text", "png", "npz", "npy", "safetensors", "orbax"],
)
def test_the_path_is_named_and_nothing_stays(no_room, tmp_path, caplog, save):
  path = tmp_path / "out.npz"
  with pytest.raises(OSError, match=r"/out\.npz") as caught:
    save(path)
  assert len(str(caught.value).splitlines()) == 1
  assert disk.is_full(caught.value)
  assert not list(tmp_path.iterdir())
  # Orbax's threads would each show a stack.
  assert not caplog.records


def test_a_run_s_memory_names_its_path(no_room, tmp_path, caplog):
  with pytest.raises(OSError, match=r"too large: '.*/memory'$"):
    weights.save_tree(tmp_path / "memory", {"x": jnp.asarray(ARRAY)}, {})
  assert not caplog.records


def test_tensorboard_fails_instead_of_waiting_for_ever(tmp_path):
  board = tensorboard.TensorBoard(tmp_path / "board")

  def fill():
    for step in range(20):
      board.add_image("x", ARRAY, step)

  with limited(), pytest.raises(OSError, match=r"'.*/board'$"):
    fill()
  board.close()


def test_other_errors_pass(tmp_path):
  with (
    pytest.raises(FileNotFoundError, match="missing"),
    atomic.replacing(tmp_path / "out"),
  ):
    (tmp_path / "missing").read_text()
