"""Folders as people have them are read as transformers reads them, or refused by name."""

import pytest

from decode.tokenizer import TokenizerError
from tests.decode.tokenizer_quirks import PART, QUIRKS, answer, stored, table
from tests.tokenizers import parity

STORED = stored()


@pytest.mark.parametrize("quirk", QUIRKS, ids=lambda quirk: quirk.says)
def test_a_folder_is_read_as_transformers_reads_it_or_refused_by_name(quirk):
    if not quirk.refused:
        assert quirk.agrees(answer(quirk, quirk.here), STORED[quirk.says])
        return
    with pytest.raises(TokenizerError) as error:
        answer(quirk, quirk.here)
    assert quirk.refused in str(error.value) and "\n" not in str(error.value)


def test_every_row_has_an_answer_and_stands_on_the_page():
    assert STORED.keys() == {quirk.says for quirk in QUIRKS}
    assert not [q.says for q in QUIRKS if not q.refused and "error" in STORED[q.says]]
    assert PART.text() == table()


@pytest.mark.parity
@parity
@pytest.mark.parametrize(
    "quirk", [q for q in QUIRKS if not (q.refused or q.pieces)], ids=lambda quirk: quirk.says
)
def test_the_answers_are_still_those_of_transformers(quirk):
    assert answer(quirk, quirk.there) == STORED[quirk.says]
