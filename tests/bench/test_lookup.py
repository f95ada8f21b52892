import pytest

from gmem_jax.bench import _lookup_peers, _timing, lookup

TINY = ["--rows", "900", "--width", "16", "--repeats", "1"]


@pytest.fixture
def speeds(monkeypatch):
  """Spares the large arrays."""
  found = _timing.Speeds(1e10, 1e11)
  monkeypatch.setattr(_timing, "measure_speeds", lambda dtype: found)


def test_table_has_a_line_for_every_search(capsys, speeds):
  peers = ["lax.top_k", "approx_max_k"]
  status = lookup.main(
    [*TINY, "--queries", "1", "3", "--neighbours", "2", "--peers", *peers]
  )
  assert status == 0
  lines = capsys.readouterr().out.splitlines()
  table = [line for line in lines if line.startswith("|")]
  # A head, a rule, and for either q two banks and two peers.
  assert len(table) == 2 + 2 * 4
  assert len({line.count("|") for line in table}) == 1
  head, nearest = (
    [cell.strip() for cell in line.split("|")[1:-1]]
    for line in (table[0], table[2])
  )
  found = dict(zip(head, nearest, strict=True))
  assert found["search"] == "nearest, float32"
  assert (found["wrong"], found["fallbacks"]) == ("0", "0.0%")
  assert float(found["ms"]) > 0
  assert float(found["x lax.top_k"]) > 0


def test_a_wrong_row_fails_the_benchmark(monkeypatch, capsys, speeds):
  monkeypatch.setattr(lookup, "wrong_rows", lambda *_: 3)
  status = lookup.main([*TINY, "--queries", "1", "--peers"])
  assert status == 1
  assert "| 3 |" in capsys.readouterr().out


def test_wrong_rows_are_counted():
  banks = lookup.make_banks(50, 8, ("float32", "int8"))
  for bank in banks.values():
    query = banks["float32"].rows[:4]
    found = lookup.lookup.nearest_counted(query, bank, 3)
    assert lookup.wrong_rows(query, bank, found) == 0
    off = found._replace(rows=found.rows.at[1, 2].set(found.rows[1, 0]))
    assert lookup.wrong_rows(query, bank, off) == 1


@pytest.mark.torch
def test_all_peers_find_something():
  pytest.importorskip("torch", reason="needs torch (extra 'oracle')")
  banks = lookup.make_banks(200, 8, ("float32",))
  query = banks["float32"].rows[:3]
  rows = banks["float32"].rows
  for peer in _lookup_peers.make(rows, query, 2, _lookup_peers.NAMES).values():
    peer.search(query)


def test_limit_is_the_slower_of_reading_and_multiplying():
  speeds = _timing.Speeds(copy=100.0, products=10.0)
  assert speeds.least(200, 10) == 2
  assert speeds.least(100, 50) == 5


def test_peers_cannot_search_int8(capsys):
  with pytest.raises(SystemExit):
    lookup.main(["--dtypes", "int8"])
  assert "cannot be int8" in capsys.readouterr().err


def test_speeds_are_measured():
  found = _timing.measure_speeds("float32")
  assert 1e8 < found.copy < 1e13
  assert 1e9 < found.products < 1e16
