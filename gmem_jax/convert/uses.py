"""What takes converted weights, by their kind; {0} is their path."""

USES = {
  "lightning_dit": "--config.sample.network={0} samples from it,"
  " --config.train.init_from={0} trains on from it.",
  "sit": "--config.sample.network={0} samples from it,"
  " --config.train.init_from={0} trains on from it.",
  "vae": "--config.encoder.tokenizer_weights={0} names it.",
  "dinov2": "--config.encoder.features_weights={0} names it.",
  "efficientnet_lite0": "--config.encoder.features_weights={0} names it.",
  "inception": "--config.eval.inception_weights={0}, or --inception={0} of"
  " python -m gmem_jax.evaluate.",
  "bank": "--mode=sample --bank={0} samples from it.",
  "int8_bank": "--mode=sample --bank={0} samples from it.",
  "low_rank_bank": "--mode=sample --bank={0} samples from it.",
  "latent_stats": "--config.encoder.latent_stats={0} names them.",
  "fid_stats": "--config.eval.reference={0} names them.",
}
