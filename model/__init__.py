"""A decoder-only transformer in `flax.nnx`, written once for every partitioning layout."""
