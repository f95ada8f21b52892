"""PNG files are written beside the device."""

import json
import subprocess
import sys
import threading

import numpy as np
import pytest

from gmem_jax.data import write_images
from gmem_jax.files import atomic
from gmem_jax.parallel import processes


def pictures(numbers):
  return np.zeros((len(numbers), 2, 2, 3), np.uint8)


def test_files_are_written_while_the_next_images_are_made(
  tmp_path, monkeypatch
):
  second, save = threading.Event(), write_images.save_png
  made = []

  def make(numbers):
    made.append(len(numbers))
    if len(made) == 2:
      second.set()
    return pictures(numbers)

  def slow(path, pixels):
    # Ends only if the second batch is made meanwhile.
    assert second.wait(20)
    save(path, pixels)

  monkeypatch.setattr(write_images, "save_png", slow)
  assert write_images.write_folder(tmp_path, 5, 2, make) == 5
  assert made == [2, 2, 1]
  assert len(list(tmp_path.glob("*.png"))) == 5


def test_a_file_that_cannot_be_written_is_an_error(tmp_path, monkeypatch):
  def full(path, pixels):
    raise OSError(f"{path.name}: no space left")

  monkeypatch.setattr(write_images, "save_png", full)
  with pytest.raises(OSError, match=r"000000\.png: no space left"):
    write_images.write_folder(tmp_path, 2, 2, pictures)


# Writes an image into a directory of samples until it is killed.
WRITER = """
import pathlib, sys
from gmem_jax.data import write_images
from gmem_jax.files import atomic
directory = pathlib.Path(sys.argv[1])
with (
  write_images.claimed(directory, {"seed": 0}),
  atomic.replacing(directory / "000000.png") as temporary,
):
  temporary.write_bytes(b"half")
  print("writing", flush=True)
  sys.stdin.read()
"""


@pytest.mark.process
def test_one_job_writes_and_what_a_killed_one_left_is_removed(tmp_path):
  directory = tmp_path / "samples"
  process = subprocess.Popen(
    [sys.executable, "-c", WRITER, directory],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )

  def write():
    with write_images.claimed(directory, {"seed": 0}):
      assert not atomic.leftovers(directory)
      write_images.write_folder(directory, 2, 2, pictures)

  try:
    assert process.stdout.readline() == "writing\n"
    match = f"config.sample.output={directory}: process {process.pid} on"
    with pytest.raises(ValueError, match=match):
      write()
    assert len(atomic.leftovers(directory)) == 1
  finally:
    process.kill()
    process.communicate()
  write()
  names = sorted(path.name for path in directory.iterdir())
  assert names == ["000000.png", "000001.png", "sample.json"]


def test_the_devices_that_made_the_images_are_noted(tmp_path, monkeypatch):
  settings = {"seed": 0, "precision": "high", "decode_dtype": "float32"}
  path = tmp_path / "sample.json"
  # As from before there were these keys.
  path.write_text('{"seed": 0}')
  devices = [{"backend": b, "device": b.upper()} for b in ("cpu", "gpu", "cpu")]
  for device in devices:
    monkeypatch.setattr(processes, "hardware", lambda device=device: device)
    with write_images.claimed(tmp_path, settings):
      pass
  assert json.loads(path.read_text()) == {**settings, "made_on": devices[:2]}
  with (
    pytest.raises(ValueError, match="precision: 'high' there, 'highest' now"),
    write_images.claimed(tmp_path, settings | {"precision": "highest"}),
  ):
    pass


def test_a_file_is_no_directory_of_samples(tmp_path):
  (tmp_path / "file").write_text("precious")
  for path in (tmp_path / "file", tmp_path / "file" / "below"):
    match = f"config.sample.output={path}: a file is there, not a directory$"
    with (
      pytest.raises(NotADirectoryError, match=match),
      write_images.claimed(path, {}),
    ):
      pass
  assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize(
  ("count", "shape"),
  [(1, (1, 1)), (2, (1, 2)), (7, (2, 4)), (8, (2, 4)), (16, (4, 4)),
   (50, (5, 10)), (64, (8, 8))],
)  # fmt: skip
def test_a_grid_is_full(count, shape):
  black = np.zeros((count, 3, 3, 1), np.uint8)
  grid = write_images.make_grid(black, gap=0)
  assert grid.shape[:2] == (3 * shape[0], 3 * shape[1])
  assert (grid == 0).sum() == 9 * count
