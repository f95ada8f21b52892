"""Files written whole or not at all, and JSON that is damaged."""

import re
import signal
import subprocess
import sys

import pytest

from gmem_jax.data import sources
from gmem_jax.files import atomic

# Half of a file is there when the process is killed.
KILLED = """
import os, pathlib, signal, sys
from gmem_jax.files import atomic
with atomic.replacing(pathlib.Path(sys.argv[1])) as temporary:
  temporary.write_text("half")
  os.kill(os.getpid(), signal.SIGKILL)
"""


def test_two_writers_of_one_file_do_not_meet(tmp_path):
  path = tmp_path / "out.npz"
  with atomic.replacing(path) as first:
    first.write_text("first")
    with atomic.replacing(path) as second:
      second.write_text("second")
    assert path.read_text() == "second"
  assert path.read_text() == "first"
  assert list(tmp_path.iterdir()) == [path]
  assert first.suffix == second.suffix == ".npz"


def test_a_failure_leaves_the_old_file_alone(tmp_path):
  path = tmp_path / "out.txt"
  atomic.write_text(path, "old")

  def fail():
    with atomic.replacing(path) as new:
      new.write_text("half")
      raise OSError("full")

  with pytest.raises(OSError, match="full"):
    fail()
  assert list(tmp_path.iterdir()) == [path]
  assert path.read_text() == "old"


def test_a_directory_that_fails_leaves_nothing(tmp_path):
  def write(fails):
    with atomic.replacing(tmp_path / "out") as new:
      new.mkdir()
      (new / "part").write_text("half")
      if fails:
        raise OSError("full")

  with pytest.raises(OSError, match="full"):
    write(fails=True)
  assert list(tmp_path.iterdir()) == []
  write(fails=False)
  assert (tmp_path / "out" / "part").read_text() == "half"


def test_what_a_kill_leaves_is_known_and_is_no_image(tmp_path):
  path = tmp_path / "000000.png"
  path.write_text("old")
  killed = subprocess.run([sys.executable, "-c", KILLED, path], check=False)
  assert killed.returncode == -signal.SIGKILL
  assert path.read_text() == "old"
  (left,) = atomic.leftovers(tmp_path)
  assert left.read_text() == "half"
  assert sources.list_images(tmp_path)[0] == [path.name]


@pytest.mark.parametrize(
  "text",
  [
    "", '{"seed": 1, "da', "[1]", "null", "[" * 10_000, "\udcff",
    '{"mean": NaN}', '{"mean": -Infinity}', '{"mean": 1e999}',
    '{"images": 1' + "0" * 30 + "}", '{"images": 1' + "0" * 5000 + "}",
  ],
  ids=range(11),
)  # fmt: skip
def test_damaged_json_names_its_file(tmp_path, text):
  path = tmp_path / "config.json"
  path.write_bytes(text.encode("utf-8", "surrogateescape"))
  with pytest.raises(ValueError, match=r"config\.json is damaged: "):
    atomic.read_json(path)


def test_json_is_bounded(tmp_path):
  path = tmp_path / "config.json"
  path.write_text('{"a": "' + "x" * 100 + '"}')
  assert len(path.read_bytes()) == 109
  assert atomic.read_json(path, largest=109) == {"a": "x" * 100}
  with pytest.raises(
    ValueError, match=r"config\.json is damaged: it has more than 108 bytes"
  ):
    atomic.read_json(path, largest=108)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("{}", "it has no 'images'"),
    ('{"images": "many"}', "its 'images' is 'many'"),
    ('{"images": true}', "its 'images' is True"),
    ('{"images": 1.5}', "its 'images' is 1.5"),
  ],
)
def test_a_key_of_another_kind_is_named_with_the_file(tmp_path, text, message):
  path = tmp_path / "report.json"
  path.write_text(text)
  with pytest.raises(ValueError, match=rf"report\.json is damaged: {message}"):
    atomic.read_json(path, {"images": int})
  path.write_text('{"images": 3}')
  assert atomic.read_json(path, {"images": int}) == {"images": 3}


def test_missing_json_names_its_file(tmp_path):
  with pytest.raises(ValueError, match=r"config\.json is missing"):
    atomic.read_json(tmp_path / "config.json")


def test_folders_above_a_file_are_made(tmp_path):
  path = tmp_path / "a" / "b" / "file.json"
  assert atomic.new_path(path) == path
  assert not path.parent.exists()
  atomic.write_json(path, {"a": 1})
  assert atomic.read_json(path) == {"a": 1}
  assert [entry.name for entry in path.parent.iterdir()] == ["file.json"]


def test_what_is_there_is_left_as_it_is(tmp_path):
  taken, empty = tmp_path / "taken", tmp_path / "empty"
  taken.write_text("precious")
  empty.mkdir()
  for path in (taken, empty, tmp_path):
    with pytest.raises(FileExistsError, match=f"{path} already exists"):
      atomic.new_path(path)
  # Writers of directories replace an empty one.
  assert atomic.new_path(empty, directory=True) == empty
  with pytest.raises(FileExistsError):
    atomic.new_path(tmp_path, directory=True)


def test_what_cannot_be_made_is_refused_before_the_work(tmp_path, monkeypatch):
  (tmp_path / "file").write_text("x")
  message = f"{tmp_path}/file/a/b: {tmp_path}/file is a file"
  with pytest.raises(NotADirectoryError, match=re.escape(message)):
    atomic.new_path(tmp_path / "file" / "a" / "b")
  # Permissions do not bind root, who may run the tests.
  monkeypatch.setattr("os.access", lambda path, mode: False)
  with pytest.raises(PermissionError, match=f"no right to write to {tmp_path}"):
    atomic.new_path(tmp_path / "a" / "b")
