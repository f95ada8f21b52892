"""Frozen networks: tokenizers (images to latents) and feature encoders."""
