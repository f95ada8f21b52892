import dataclasses
import gc
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmem_jax.config import training
from gmem_jax.files import atomic as files, weights
from gmem_jax.parallel import sharding
from gmem_jax.train import checkpoint, state as train_state

CONFIG = training.CheckpointConfig(every=10, keep_latest=2, keep_every=30)


@pytest.fixture
def abandoned():
  """Orbax abandons its reading coroutines when a file is damaged.

  They are collected here, or they would complain in some later test.
  """
  yield
  gc.collect()


def leaves_coroutines(test):
  """Marks a test that damages a checkpoint."""
  test = pytest.mark.usefixtures("abandoned")(test)
  return pytest.mark.filterwarnings(
    "ignore::RuntimeWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore::pytest.PytestUnhandledThreadExceptionWarning",
  )(test)


def make_state(step: int) -> train_state.TrainState:
  key = jax.random.key(step)
  params = {"kernel": jax.random.normal(key, (64, 96)), "bias": jnp.ones(3)}
  return train_state.TrainState(
    step=jnp.array(step, jnp.int32),
    params=params,
    ema=jax.tree.map(lambda x: 2 * x, params),
    opt_state={"mu": jax.tree.map(lambda x: 3 * x, params)},
  )


def target_on(mesh):
  shapes = jax.eval_shape(lambda: make_state(0))
  return sharding.abstract(shapes, sharding.state_shardings(shapes, mesh))


@pytest.fixture
def mesh():
  return sharding.make_mesh(
    sharding.MeshConfig(1, 1, 1), devices=jax.devices()[:1]
  )


@pytest.fixture
def written(tmp_path):
  """A directory with checkpoints at 10, 20 and 30."""
  with checkpoint.opened(tmp_path / "ck", CONFIG) as checkpoints:
    for step in (10, 20, 30):
      checkpoints.save(step, make_state(step), {"train_seconds": 1.5 * step})
  return tmp_path / "ck"


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def restore(directory, mesh):
  with checkpoint.opened(directory, CONFIG) as checkpoints:
    return checkpoints.restore(target_on(mesh))


def test_round_trip_is_bitwise(written, mesh):
  state, progress = restore(written, mesh)
  assert_same(state, make_state(30))
  assert progress == {"train_seconds": 45.0}


def test_nothing_to_restore(tmp_path, mesh):
  assert restore(tmp_path / "ck", mesh) is None


def test_what_is_kept(tmp_path):
  with checkpoint.opened(tmp_path / "ck", CONFIG) as checkpoints:
    for step in (10, 20, 30, 40, 50, 60, 70):
      checkpoints.save(step, make_state(step), {"train_seconds": 0.1})
    checkpoints.wait()
    # The newest two, and every thirtieth.
    assert checkpoint.steps(tmp_path / "ck") == [30, 60, 70]


def test_restores_onto_another_mesh(written):
  mesh = sharding.make_mesh(sharding.MeshConfig(1, 2, 2))
  state, _ = restore(written, mesh)
  assert tuple(state.params["kernel"].sharding.spec) == ("fsdp", "tensor")
  assert_same(state, make_state(30))


def test_arrays_are_not_compressed(tmp_path):
  same = make_state(0).replace(ema={"kernel": jnp.ones((512, 512))})
  with checkpoint.opened(tmp_path / "ck", CONFIG) as checkpoints:
    checkpoints.save(1, same, {"train_seconds": 0.1})
  files = (tmp_path / "ck" / "1").rglob("*")
  assert sum(f.stat().st_size for f in files) > 512 * 512 * 4


def files_of_a_checkpoint(directory: pathlib.Path):
  return sorted(f for f in directory.rglob("*") if f.is_file())


@leaves_coroutines
def test_damage_anywhere_never_restores_a_wrong_state(written, mesh, caplog):
  """Truncates each file in turn: the state is right, or the one before."""
  fell_back = 0
  for damaged in files_of_a_checkpoint(written / "30"):
    name = damaged.relative_to(written)
    copy = written.with_name("copy")
    shutil.copytree(written, copy)
    with (copy / name).open("r+b") as f:
      f.truncate(damaged.stat().st_size // 2)
    caplog.clear()
    state, progress = restore(copy, mesh)
    step = int(state.step)
    assert step in (20, 30), name
    assert_same(state, make_state(step))
    assert progress == {"train_seconds": 1.5 * step}
    if step == 20:
      fell_back += 1
      assert "checkpoint 30 is unreadable" in caplog.text
      assert list(copy.glob("unreadable-30-*")), "nothing is thrown away"
    shutil.rmtree(copy)
  assert fell_back >= 3


def flip_a_bit(path: pathlib.Path, where: float) -> None:
  data = bytearray(path.read_bytes())
  data[int(where * (len(data) - 1))] ^= 16
  path.write_bytes(data)


@leaves_coroutines
def test_a_flipped_bit_never_restores_a_wrong_state(written, mesh):
  """Flips a bit in each file in turn, in several places."""
  fell_back = set()
  for damaged in files_of_a_checkpoint(written / "30"):
    name = damaged.relative_to(written)
    for where in (0.0, 0.6):
      copy = written.with_name("copy")
      shutil.copytree(written, copy)
      flip_a_bit(copy / name, where)
      state, progress = restore(copy, mesh)
      step = int(state.step)
      assert step in (20, 30), name
      assert_same(state, make_state(step))
      assert progress == {"train_seconds": 1.5 * step}
      if step == 20:
        fell_back.add(name)
      shutil.rmtree(copy)
  # The arrays' own bytes, which orbax does not check, and the metadata.
  assert len(fell_back) >= 3


@leaves_coroutines
def test_a_flipped_bit_in_an_array_is_named(written, mesh, caplog):
  data = max(
    files_of_a_checkpoint(written / "30"), key=lambda f: f.stat().st_size
  )
  flip_a_bit(data, 0.5)
  state, _ = restore(written, mesh)
  assert_same(state, make_state(20))
  assert "not what was written" in caplog.text


@leaves_coroutines
def test_training_can_write_again_where_it_fell_back(written, mesh):
  data = max(
    files_of_a_checkpoint(written / "30"), key=lambda f: f.stat().st_size
  )
  data.unlink()
  with checkpoint.opened(written, CONFIG) as checkpoints:
    assert int(checkpoints.restore(target_on(mesh))[0].step) == 20
    checkpoints.save(30, make_state(30), {"train_seconds": 9.0})
  state, progress = restore(written, mesh)
  assert_same(state, make_state(30))
  assert progress == {"train_seconds": 9.0}


@leaves_coroutines
def test_no_readable_checkpoint_is_an_error_not_a_fresh_start(written, mesh):
  for step in (10, 20, 30):
    for f in files_of_a_checkpoint(written / str(step)):
      if "state" in f.parts:
        f.unlink()
  for _ in range(2):  # nor does a second start begin from scratch
    with pytest.raises(ValueError, match="none of the checkpoints"):
      restore(written, mesh)


def test_half_written_checkpoint_is_not_listed(written, mesh):
  (written / "40.orbax-checkpoint-tmp").mkdir()
  (written / "40.orbax-checkpoint-tmp" / "state").write_text("half")
  state, _ = restore(written, mesh)
  assert int(state.step) == 30


def load_ema(directory, mesh, step=None):
  return checkpoint.load_part(
    directory,
    "ema",
    lambda shapes: sharding.state_shardings(shapes, mesh),
    step,
  )


def snapshot(directory):
  return {f: f.read_bytes() for f in files_of_a_checkpoint(directory)}


def test_a_part_is_read_as_it_was_stored(written, mesh, caplog):
  step, ema = load_ema(written, mesh)
  assert step == 30
  assert_same(ema, make_state(30).ema)
  assert not caplog.text


@leaves_coroutines
def test_a_part_of_an_older_checkpoint_is_read(written, mesh):
  step, ema = load_ema(written, mesh, 20)
  assert step == 20
  assert_same(ema, make_state(20).ema)
  with pytest.raises(ValueError, match=r"step=25: .*has the steps 20, 30$"):
    load_ema(written, mesh, 25)
  # What is asked for and damaged is not replaced by another.
  for path in (written / "20").rglob("*"):
    if path.is_file():
      path.write_bytes(b"")
  with pytest.raises(ValueError, match="step=20: the checkpoint cannot be"):
    load_ema(written, mesh, 20)
  assert load_ema(written, mesh, 30)[0] == 30


def test_a_part_goes_to_the_mesh_it_is_asked_for_on(written):
  mesh = sharding.make_mesh(sharding.MeshConfig(1, 2, 2))
  _, ema = load_ema(written, mesh)
  assert tuple(ema["kernel"].sharding.spec) == ("fsdp", "tensor")
  assert_same(ema, make_state(30).ema)


@leaves_coroutines
def test_a_damaged_part_falls_back_and_nothing_moves(written, mesh, caplog):
  """Truncates, and flips a bit in, each file in turn."""
  fell_back = set()
  for damaged in files_of_a_checkpoint(written / "30"):
    whole = damaged.read_bytes()
    for cut in (True, False):
      if cut:
        damaged.write_bytes(whole[: len(whole) // 2])
      else:
        flip_a_bit(damaged, 0.5)
      before = snapshot(written)
      caplog.clear()
      step, ema = load_ema(written, mesh)
      assert step in (20, 30), damaged
      assert_same(ema, make_state(step).ema)
      assert snapshot(written) == before
      if step == 20:
        fell_back.add((damaged, cut))
        assert "checkpoint 30 is unreadable" in caplog.text
      damaged.write_bytes(whole)
  assert {cut for _, cut in fell_back} == {True, False}
  assert len(fell_back) >= 3


@leaves_coroutines
def test_no_readable_part_is_an_error(written, mesh, tmp_path):
  for f in files_of_a_checkpoint(written):
    f.write_bytes(b"")
  with pytest.raises(ValueError, match=r"none of the checkpoints in .*/ck can"):
    load_ema(written, mesh)
  with pytest.raises(ValueError, match="/none: there is no checkpoint yet"):
    load_ema(tmp_path / "none", mesh)


def test_tree_round_trip(tmp_path, mesh):
  tree = {"rows": jnp.arange(6.0).reshape(2, 3)}
  weights.save_tree(tmp_path / "t", tree, {"name": "x"})
  everywhere = sharding.replicated(mesh)
  loaded, metadata = weights.load_tree(tmp_path / "t", everywhere)
  assert_same(loaded, tree)
  assert metadata == weights.read_tree_metadata(tmp_path / "t") == {"name": "x"}
  with pytest.raises(ValueError, match="no such checkpoint"):
    weights.load_tree(tmp_path / "absent", everywhere)


def test_files_are_written_whole(tmp_path):
  files.write_json(tmp_path / "a.json", {"x": 1})
  files.write_json(tmp_path / "a.json", {"x": 2})
  assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("key", ["every", "keep_latest", "keep_every"])
def test_wrong_settings_name_the_key(key):
  with pytest.raises(ValueError, match=rf"config\.checkpoint\.{key}=-1: must"):
    dataclasses.replace(CONFIG, **{key: -1})
