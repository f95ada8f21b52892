"""The smallest LightningDiT that the benchmarks take."""

CHANGES = {
  "encoder.image_size": 4,
  "model.width": 24,
  "model.depth": 1,
  "model.heads": 2,
  "model.projector_depth": 1,
  "model.projector_width": 8,
  "train.batch_size": 2,
  "sample.device_batch": 2,
}


def arguments(**changes):
  """As arguments of a benchmark; keys are dotted with "__"."""
  changes = {k.replace("__", "."): v for k, v in changes.items()}
  return [
    "--size=small",
    *(f"--change={k}={v}" for k, v in (CHANGES | changes).items()),
  ]
