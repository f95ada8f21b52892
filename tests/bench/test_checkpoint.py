import jax
import jax.numpy as jnp
import pytest

from gmem_jax.bench import checkpoint
from tests.bench import shapes


def test_table_has_a_row_for_each(capsys, tmp_path, monkeypatch):
  monkeypatch.setattr(checkpoint.importlib.util, "find_spec", lambda name: None)
  with jax.numpy_dtype_promotion("standard"):
    status = checkpoint.main(
      [*shapes.arguments(), "--repeats=1", f"--directory={tmp_path}"]
    )
  assert status == 0
  out, err = capsys.readouterr()
  assert "torch is not installed" in err
  rows = [line.split("|") for line in out.splitlines() if line[:1] == "|"]
  assert [r[1].strip() for r in rows[2:]] == [
    checkpoint.OURS,
    checkpoint.DEFAULT,
  ]
  for row in rows[2:]:
    blocking, total = float(row[2]), float(row[3])
    assert 0 < blocking <= total + 0.01
  assert not list(tmp_path.iterdir())


def test_a_changed_bit_is_found():
  tree = {"a": jnp.ones(3)}
  checkpoint._check(tree, {"a": jnp.ones(3)})
  with pytest.raises(AssertionError):
    checkpoint._check(tree, {"a": jnp.ones(3).at[1].set(1 + 1e-7)})


def test_size_counts_all_files(tmp_path):
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / "b").write_bytes(b"123")
  (tmp_path / "c").write_bytes(b"4")
  assert checkpoint.size_of(tmp_path) == 4
