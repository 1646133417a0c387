"""Published figures, from `published.json`, beside what this project counts for the same case."""

import json
from collections.abc import Iterator
from importlib import resources

import jax.numpy as jnp

from model.catalog import find_model
from model.form import Form
from profiles.traffic import kv_token_bytes
from sharding.layout import attend_by, find_layout
from sharding.mesh import parse_mesh

TOLERANCE = 0.015
"""Published contexts are rounded to two or three digits, and so is the memory left for them."""


def longest_contexts() -> Iterator[dict]:
    """Each published longest context as a row for a report.

    Yields:
      ``source``, ``locator``, ``assumed``, ``batch``, ``published_context``, ``context`` as counted
      here, and ``error``, the second's distance from the first as a fraction.
    """
    for case in _data()["longest_contexts"]:
        config = find_model(case["model"])
        layout = attend_by(find_layout(case["layout"]), case["attention"])
        placement = layout.check(config.sizes, parse_mesh(case["mesh"]))
        token = kv_token_bytes(config, placement, Form(jnp.dtype(case["kv_dtype"])))
        for batch, published in case["published"].items():
            context = case["kv_bytes_per_chip"] / (int(batch) * token)
            yield {
                **{key: case[key] for key in ("source", "locator", "assumed")},
                "batch": int(batch),
                "published_context": published,
                "context": context,
                "error": context / published - 1,
            }


def _data() -> dict:
    return json.loads(resources.files("profiles").joinpath("published.json").read_text())
