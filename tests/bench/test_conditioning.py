"""The comparison of conditionings, without its trainings."""

import pytest

from gmem_jax.bench import conditioning
from tests import tiny

DIGITS = tiny.ROOT / "configs" / "digits.py"


def result(name, curve):
  return conditioning.Result(
    name=name,
    parameters=1234,
    seconds=curve[-1][0],
    curve=curve,
    from_bank=curve[-1][1],
    from_heldout=3.5,
    swapped=4.5,
    own_memory=0.25,
    nearest=1.5,
    real_nearest=2.5,
  )


def test_variants_are_compared_at_the_same_time():
  fast = result("adaLN", [(1.0, 9.0), (2.0, 8.0)])
  slow = result("cross", [(1.5, 7.0), (3.0, 6.0)])
  text = conditioning.table([fast, slow])
  assert (
    "| adaLN | 1,234 | 2 | 8.00 | 8.00 | 3.50 | 4.50 | 25% | 1.50 |" in text
  )
  assert "| cross | 1,234 | 3 | 6.00 | 7.00 |" in text
  assert "2.50 from their nearest" in text
  assert slow.at(1.0) != slow.at(1.0)  # NaN: nothing was measured by then.


@pytest.mark.parametrize("name", conditioning.VARIANTS)
def test_every_variant_is_a_recipe(name):
  changes = conditioning.VARIANTS[name]
  config = conditioning.load_config(str(DIGITS), changes, 100)
  assert config.model.conditioning == changes["model.conditioning"]
  assert (config.train.steps, config.optim.decay_steps) == (100, 100)


def test_an_unknown_variant_is_refused(capsys):
  with pytest.raises(SystemExit):
    conditioning.main(["--only", "nothing"])
  assert "['nothing'] are none of" in capsys.readouterr().err
