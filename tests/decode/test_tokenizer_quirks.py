"""Folders as people have them are read as transformers reads them, or refused by name."""

import importlib
import json

import pytest

from decode import tokenizer_classes as classes
from decode.ignored_settings import OTHERS, SAMPLING
from decode.tokenizer import TokenizerError
from tests.decode.tokenizer_quirks import PART, QUIRKS, answer, stored, table
from tests.family_cases import FOLDER
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


# Fields of `GenerationConfig` that change no token: of tokens that are read elsewhere, of what is
# given back, of speed, of drafts, of invalid numbers, which end a run here, and of the file itself.
_QUIET = """
eos_token_id bos_token_id pad_token_id decoder_start_token_id do_sample early_stopping
num_return_sequences output_attentions output_hidden_states output_scores output_logits
return_dict_in_generate use_cache cache_implementation cache_config max_cache_len low_memory
compile_config disable_compile continuous_batching_config prefill_chunk_size use_mtp is_assistant
num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold
prompt_lookup_num_tokens max_matching_ngram_size assistant_early_exit assistant_lookbehind
target_lookbehind assistant_ensemble_weight speculation_type remove_invalid_values
transformers_version _from_model_config
"""
QUIET = {*_QUIET.split()}


@pytest.mark.parity
@parity
def test_every_generation_setting_of_transformers_is_told_or_changes_no_token():
    fields = vars(importlib.import_module("transformers").GenerationConfig())
    assert fields.keys() <= {*SAMPLING, *OTHERS} | QUIET
    assert not QUIET & {*SAMPLING, *OTHERS}


@pytest.mark.parity
@parity
def test_every_class_and_model_type_of_transformers_has_its_place():
    auto = importlib.import_module("transformers.models.auto.tokenization_auto")
    registered = {
        kind: name.removesuffix("Fast") if name and "Mistral" not in name else classes.FILE
        for kind, name in auto.TOKENIZER_MAPPING_NAMES.items()
        if name
    }
    known = {*classes.CLASSES, *classes.OTHERS, classes.FILE}
    assert {*registered.values()} <= known
    assert classes.MODELS.items() <= registered.items()
    for folder in FOLDER.iterdir():
        kind = json.loads((folder / "config.json").read_text())["model_type"]
        assert classes.MODELS.get(kind) == registered.get(kind)
    distrusted = auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS
    assert {*classes.DISTRUSTED} == distrusted & classes.MODELS.keys()
