"""Habits of real folders: read as transformers reads them, or refused by name."""

import dataclasses

import numpy as np
import pytest

from decode.load import find_source
from model.dtypes import FLOAT32
from sharding.catalog import LAYOUTS
from sharding.mesh import parse_mesh
from tests import quirk_table
from tests.family_cases import FOLDER
from tests.quirk_references import PROMPT
from tests.quirks import QUIRKS

KEYS = [quirk.key for quirk in QUIRKS]


def test_no_row_is_there_twice():
    assert len(set(KEYS)) == len(KEYS)


@pytest.mark.parametrize("quirk", QUIRKS, ids=KEYS)
def test_a_quirk_is_read_as_it_is_or_refused_by_name(quirk):
    """Where the configuration is that of the folder without it, so are transformers' logits."""
    found, message = quirk_table.here(quirk)
    assert found == quirk.expected
    if found == "refused":
        named = [
            part for name in quirk.fields for part in (name, name.replace("parameters", "scaling"))
        ]
        assert any(name in message for name in named) and "; " in message
    else:
        theirs = quirk_table.of_transformers(quirk)
        assert theirs == found or (theirs, found) == ("refused", "as without")


@pytest.mark.slow
@pytest.mark.parametrize(
    "quirk", [quirk for quirk in QUIRKS if quirk.expected == "its own"], ids=lambda q: q.key
)
def test_a_quirk_of_another_model_has_the_logits_of_transformers(quirk):
    config = quirk_table.read(quirk)
    if config.long_rotary_factors:  # the prompt is longer than those for short ones hold for
        config = dataclasses.replace(config, max_context=128)
    source = dataclasses.replace(find_source(str(FOLDER / quirk.case)), config=config)
    engine = source.engine(LAYOUTS["weight_stationary_1d"], parse_mesh("1x1x1"), FLOAT32)
    prompt = np.load(FOLDER / quirk.case / "reference.npz")[f"prompt_{PROMPT}"]
    found = np.asarray(engine.forward(prompt[None].astype(np.int32)))[0, -1]
    expected = quirk_table.answers()[quirk.key]
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
