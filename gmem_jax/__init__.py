"""GMem in JAX: a latent flow transformer that remembers in a bank."""

__version__ = "0.1.0"
