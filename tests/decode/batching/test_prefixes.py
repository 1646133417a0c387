"""Rows found by the blocks of tokens that they begin with."""

import numpy as np

from decode.batching.prefixes import BLOCK, Prefixes


def test_rows_that_share_most_blocks_with_a_prompt_come_first():
    tokens, prefixes = list(range(5 * BLOCK)), Prefixes()
    prefixes.hold(0, tokens[: BLOCK + 3])
    prefixes.hold(1, tokens[: 3 * BLOCK])
    prefixes.hold(2, tokens[: 2 * BLOCK] + [0] * BLOCK)
    prefixes.hold(3, tokens[1:])
    assert list(prefixes.alike(tokens)) == [[1], [1, 2], [0, 1, 2]]
    assert list(prefixes.alike(tokens[: 2 * BLOCK - 1])) == [[0, 1, 2]]
    assert list(prefixes.alike(tokens[: BLOCK - 1])) == []
    prefixes.forget(1)
    assert list(prefixes.alike(tokens)) == [[2], [0, 2]]


def test_a_row_that_grows_token_by_token_is_found_as_one_that_is_there_at_once():
    tokens = np.random.default_rng(0).integers(0, 1000, 4 * BLOCK + 5).tolist()
    grown, whole = Prefixes(), Prefixes()
    for length in range(len(tokens) + 1):
        grown.hold(7, tokens[:length])
    whole.hold(7, tokens)
    assert list(grown.alike(tokens)) == list(whole.alike(tokens)) == [[7]] * 4


def test_nothing_is_left_of_rows_that_are_forgotten():
    prefixes = Prefixes()
    for row in range(3):
        prefixes.hold(row, list(range(100)))
    for row in range(3):
        prefixes.forget(row)
    assert not prefixes._rows and not prefixes._blocks
