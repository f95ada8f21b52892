"""One module a command: what `main` and `bank` dispatch to."""
