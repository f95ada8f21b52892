"""The bench of the studio: its bank, its goals, and a visit."""

import pytest

import gmem_jax
from gmem_jax.bench import studio
from gmem_jax.data import emoji
from gmem_jax.studio import catalogue


def test_a_synthetic_bank_has_rows_and_pictures(tmp_path):
  studio.synthetic_bank(tmp_path / "bank", 1200)
  generator = gmem_jax.load("emoji").with_bank(str(tmp_path / "bank"))
  bank = generator.source.require_bank()
  assert len(bank.rows) == 1200
  assert abs(bank.rows.mean()) < 0.01
  assert bank.rows.std() == pytest.approx(1, abs=0.01)
  own = gmem_jax.load("emoji").source.require_bank()
  listed = catalogue.Catalogue(bank, 64)
  assert listed.name_of(1199) == own.images.names[1199 - 1178]
  assert emoji.drawn(listed.name_of(1199)) is not None
  assert (listed.picture(1199) == listed.picture(21)).all()


def test_goals_are_said_where_they_are_missed():
  good = {"answers": 99.0, "usable": 9.0, "thumbnails": 0.9, "preview": 0.5}
  small, large = studio.SIZES
  assert studio.missed(small, good) == []
  # What is slower is said; a large bank's start has no goal, its page another.
  slow = {"answers": 99.0, "usable": 11.0, "thumbnails": 1.5, "preview": 1.2}
  assert [line.split(" took ")[0] for line in studio.missed(small, slow)] == [
    "2,000 rows: usable", "2,000 rows: preview", "2,000 rows: thumbnails",
  ]  # fmt: skip
  assert studio.missed(large, slow) == [
    "1,281,167 rows: preview took 1.20 s, the goal is 1 s"
  ]
  assert studio.missed(small, {"answers": 3.0}) == []


@pytest.mark.parametrize("flag", ["--rows=", "--rows=0", "--repeats=0"])
def test_what_cannot_be_measured_is_refused(flag, capsys):
  with pytest.raises(SystemExit):
    studio.main([flag])
  assert flag.split("=")[0] in capsys.readouterr().err


@pytest.mark.slow
def test_a_visit_is_timed():
  with studio.chromium() as browser:
    if browser is None:
      pytest.skip("there is no chromium on this machine")
    found = studio.measure(browser, 70, 1)
  assert found.keys() == {"answers", "usable", "thumbnails", "preview"}
  assert found["usable"] > found["answers"] > 1
  assert 0 < found["thumbnails"] < 60
  assert 0 < found["preview"] < 60
