"""From images to batches: schema, sources, preparation, pipeline."""
