"""A training step in PyTorch, tuned as one would tune it, for comparison.

One graph of network and loss by `torch.compile` where that works, bfloat16 by
autocast, fused AdamW, the moving average by one foreach call, no
synchronisation. Importing this module needs torch.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from gmem_jax.bench import _torch_network
from gmem_jax.config import sections
from gmem_jax.models import transformer

torch = _torch_network.torch


@dataclasses.dataclass(frozen=True)
class TensorDraws:
  """One step's data and random draws, tensors; see `train_step.Draws`."""

  x1: Any
  x0: Any
  t: Any
  snippet: Any
  tokens: Any


class TorchStep:
  """A network in training.

  Attributes:
    name: What it is, for the table.
    device: Where it runs.
  """

  def __init__(
    self,
    config: sections.Config,
    network: transformer.FlowTransformer,
    params: Mapping[str, Any],
    *,
    compiled: bool,
  ):
    """Copies the parameters."""
    self.device = "cuda" if torch.cuda.is_available() else "cpu"
    if self.device == "cpu":
      # As many as XLA takes; torch's default leaves out hyper-threads.
      torch.set_num_threads(len(os.sched_getaffinity(0)))
    # torch draws its own noise; only for a repeatable run.
    torch.manual_seed(config.seed)
    grid = int(np.sqrt(params["pos_embed"].shape[1]))
    self.name = "torch.compile" if compiled else "torch, eager"
    self._config = config
    self._network = _torch_network.TorchNetwork(network, grid, self.device)
    self._params = _torch_network.convert(params, self.device)
    trained = [p for p in self._params.values() if p.requires_grad]
    self._trained = trained
    # The moving average is part of the product's step, so of this one.
    self._ema = [p.detach().clone() for p in trained]
    optim = config.optim
    self._optimizer = torch.optim.AdamW(
      trained,
      lr=optim.learning_rate,
      betas=(optim.b1, optim.b2),
      eps=optim.eps,
      weight_decay=optim.weight_decay,
      fused=True,
    )
    self._rate = network.snippet_dropout
    self._loss = (
      torch.compile(self._forward, dynamic=False) if compiled else self._forward
    )

  def _forward(self, params, draws):
    config = self._config.loss
    t = draws.t[:, None, None, None]
    x_t = t * draws.x1 + (1 - t) * draws.x0
    velocity, projected = self._network(
      params, x_t, draws.t, draws.snippet, config.projection_weight > 0
    )
    return _torch_network.flow_loss(config, velocity, projected, draws)

  def tensor(self, x: Any) -> Any:
    """One of our arrays as a tensor."""
    return torch.tensor(np.asarray(x), device=self.device)

  def loss_and_norm(self, draws: TensorDraws) -> tuple[float, float]:
    """The loss of given draws, and the norm of its gradient."""
    loss = self._loss(self._params, draws)
    loss.backward()
    # Before clipping, as the product reports it.
    norm = torch.nn.utils.get_total_norm([p.grad for p in self._trained])
    self._optimizer.zero_grad(set_to_none=True)
    return float(loss.detach()), float(norm)

  def step(self, batch: Mapping[str, Any], bank: Any) -> Any:
    """One step, with draws of its own; waits until it is done.

    Args:
      batch: `latent` [b h w c], `row` [b] and perhaps `tokens`, tensors.
      bank: Unit rows.

    Returns:
      The loss.
    """
    x1 = batch["latent"]
    snippet = torch.nn.functional.dropout(bank[batch["row"]], self._rate)
    draws = TensorDraws(
      x1=x1,
      x0=torch.randn_like(x1),
      t=torch.sigmoid(torch.randn(len(x1), device=self.device)),
      snippet=snippet,
      tokens=batch.get("tokens"),
    )
    return self.update(draws)

  def update(self, draws: TensorDraws) -> Any:
    """One step on given draws; waits until it is done.

    Returns:
      The loss.
    """
    loss = self._loss(self._params, draws)
    loss.backward()
    # foreach: a few kernels for all tensors, not some for each; AdamW is fused
    # for the same reason.
    torch.nn.utils.clip_grad_norm_(
      self._trained, self._config.optim.clip_norm, foreach=True
    )
    self._optimizer.step()
    self._optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
      torch._foreach_lerp_(
        self._ema, self._trained, 1 - self._config.train.ema_decay
      )
    if self.device == "cuda":
      # Kernels are started asynchronously; the caller's clock needs their end.
      torch.cuda.synchronize()
    return loss.detach()

  def parameters(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The trained parameters and their averages, by name."""
    names = [n for n, p in self._params.items() if p.requires_grad]
    return {
      name: (p.detach().cpu().numpy(), average.cpu().numpy())
      for name, p, average in zip(names, self._trained, self._ema, strict=True)
    }

  def peak(self) -> int | None:
    """Most bytes on the device so far; None on a CPU."""
    if self.device == "cpu":
      return None
    return int(torch.cuda.max_memory_allocated())
