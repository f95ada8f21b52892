import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmem_jax.aot import flops
from gmem_jax.bench import _products, _timing, _training, train
from gmem_jax.train import state as train_state, step as train_step
from tests.bench import shapes


@pytest.fixture(scope="module")
def work():
  with jax.numpy_dtype_promotion("standard"):
    yield _training.make(
      train.parse(
        shapes.arguments(optim__learning_rate=0.01, train__ema_decay=0.5)
      ).recipe
    )


@pytest.fixture(autouse=True)
def speeds(monkeypatch):
  """Spares the large arrays."""
  found = _timing.Speeds(1e10, 1e11)
  monkeypatch.setattr(_timing, "measure_speeds", lambda dtype: found)


@pytest.fixture
def made(work, monkeypatch):
  """Spares compiling again."""
  monkeypatch.setattr(_training, "make", lambda config: work)


class Peer:
  """Looks like a torch step that computes something else."""

  name = "torch, eager"
  check = (1.0, 1.0)

  def tensor(self, x):
    return x

  def step(self, batch, bank):
    return 0.0

  def peak(self):
    return None


@pytest.mark.slow
def test_stages_compute_what_the_step_computes(work):
  drawn = _training.draws(work)
  update = train_step.make_update(
    work.network,
    train_state.make_optimizer(work.config.optim),
    work.config.loss,
    ema_decay=work.config.train.ema_decay,
  )
  _, metrics = jax.jit(update)(work.state, drawn)
  stages = _training.make_stages(work, drawn)
  loss, _ = stages["gradient"]()
  np.testing.assert_allclose(loss, metrics["train/loss"], rtol=1e-5)
  np.testing.assert_allclose(stages["forward"](), loss, rtol=1e-5)
  params, _, ema = stages["update"]()
  assert jax.tree.structure(params) == jax.tree.structure(ema)


def test_a_step_moves_the_state(work):
  before = int(work.state.step)
  metrics = work.step()
  assert int(work.state.step) == before + 1
  assert np.isfinite(metrics["train/loss"]).all()
  held = sum(x.nbytes for x in jax.tree.leaves(work.state))
  assert work.memory > held


def test_flops_of_the_step_are_those_of_its_products(work):
  total = 0.0
  for (left, right, numbers, _), count in work.products.items():
    traced = jax.make_jaxpr(
      lambda a, b, n=numbers: jax.lax.dot_general(a, b, n)
    )(jnp.zeros(*left), jnp.zeros(*right))
    total += count * flops.count(traced)
  assert total == work.flops > 1e6


def test_products_in_loops_count_with_their_trips():
  def f(x):
    return jax.lax.scan(lambda y, _: (y @ y, None), x @ x, length=5)[0]

  found = _products.collect(jax.make_jaxpr(jax.jit(f))(jnp.ones((4, 4))))
  assert list(found.values()) == [6]
  assert _products.seconds(found) > 0


def test_table_without_a_peer(made, capsys, tmp_path):
  path = tmp_path / "RESULTS.md"
  status = train.main(
    [*shapes.arguments(), "--peer=none", "--repeats=1", f"--results={path}"]
  )
  assert status == 0
  lines = path.read_text().splitlines()
  table = [line for line in lines if line.startswith("|")]
  assert len(table) == 3 + 6
  assert float(table[2].split("|")[2]) > 0
  assert table[2].split("|")[1].strip() == train.OURS
  assert table[0] in capsys.readouterr().out


def test_the_step_alone_compiles_no_stage(made, monkeypatch, capsys):
  compiled = []
  make = _training.make_stages

  def watched(*args):
    return {
      name: lambda name=name, call=call: (compiled.append(name), call())[1]
      for name, call in make(*args).items()
    }

  monkeypatch.setattr(_training, "make_stages", watched)
  arguments = [*shapes.arguments(), "--repeats=1", "--stages=none"]
  assert train.main([*arguments, "--peer=none"]) == 0
  assert not compiled
  lines = capsys.readouterr().out.splitlines()
  assert len([line for line in lines if line.startswith("|")]) == 3


def test_a_peer_that_computes_something_else_fails(made, monkeypatch, capsys):
  monkeypatch.setattr(train, "make_peers", lambda *_: [Peer()])
  real = importlib.import_module
  monkeypatch.setattr(
    train.importlib,
    "import_module",
    lambda name: jax if name == "torch" else real(name),
  )
  assert train.main([*shapes.arguments(), "--repeats=1"]) == 1
  assert Peer.name in capsys.readouterr().out


def test_without_torch_the_peer_is_left_out(work, monkeypatch, capsys):
  monkeypatch.setattr(train.importlib.util, "find_spec", lambda name: None)
  assert train.make_peers(work, ["torch"]) == []
  assert "torch is not installed" in capsys.readouterr().err


@pytest.mark.torch
def test_torch_takes_the_same_step(work):
  pytest.importorskip("torch", reason="needs torch (extra 'oracle')")
  torch_step = importlib.import_module("gmem_jax.bench._torch_step")
  params = jax.device_get(work.state.params)
  peer = torch_step.TorchStep(work.config, work.network, params, compiled=False)
  drawn = _training.draws(work)
  tensors = train._tensors(torch_step, peer, work)
  # A fresh optimizer on both sides.
  tx = train_state.make_optimizer(work.config.optim)
  fresh = work.state.replace(
    ema=work.state.params, opt_state=tx.init(work.state.params)
  )
  update = train_step.make_update(
    work.network,
    tx,
    work.config.loss,
    ema_decay=work.config.train.ema_decay,
  )
  state, metrics = jax.jit(update)(fresh, drawn)
  loss, norm = peer.loss_and_norm(tensors)
  np.testing.assert_allclose(loss, metrics["train/loss"], rtol=1e-5)
  np.testing.assert_allclose(norm, metrics["train/grad_norm"], rtol=1e-4)
  peer.update(tensors)
  network = torch_step._torch_network
  wanted = zip(
    network.convert(jax.device_get(state.params), "cpu").items(),
    network.convert(jax.device_get(state.ema), "cpu").values(),
    strict=True,
  )
  found, moved = peer.parameters(), 0
  start = network.convert(params, "cpu")
  for (name, value), average in wanted:
    if name == "pos_embed":
      continue
    value, average = value.detach().numpy(), average.detach().numpy()
    # Adam's first step is the gradient's sign, which rounding may turn.
    rate = work.config.optim.learning_rate
    off = np.abs(found[name][0] - value) > 0.02 * rate
    assert off.mean() < 0.02, name
    off = np.abs(found[name][1] - average) > 0.02 * rate
    assert off.mean() < 0.02, name
    moved += np.abs(value - start[name].detach().numpy()).max() > rate / 2
  assert moved == len(found)


@pytest.mark.torch
@pytest.mark.slow
# torch.compile warns of what it uses itself.
@pytest.mark.filterwarnings(
  "ignore:.torch.jit.script_method:DeprecationWarning"
)
def test_torch_runs_in_turns_with_us(capsys):
  pytest.importorskip("torch", reason="needs torch (extra 'oracle')")
  assert train.main([*shapes.arguments(), "--repeats=1"]) == 0
  assert "| torch, eager |" in capsys.readouterr().out
