"""Generation settings in a model's files that are ignored, as messages for the user.

The flags of a run alone say how tokens are chosen, greedily without any. Names and defaults are
from `GenerationConfig` in transformers and from llama.cpp's keys in `general.sampling`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from decode.tokenizer_files import read_text
from decode.tokenizer_parts import TokenizerError

_FILE = "generation_config.json"
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p")
# Settings that change the tokens of greedy generation too, with the values that change nothing.
_OTHERS: Mapping[str, tuple[Any, ...]] = {
    "repetition_penalty": (1,),
    "encoder_repetition_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "guidance_scale": (1,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "max_new_tokens": (),
    "penalty_alpha": (0,),
    "dola_layers": (),
    "bad_words_ids": (),
    "sequence_bias": (),
    "suppress_tokens": (),
    "begin_suppress_tokens": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "stop_strings": (),
}


def asked_by_folder(folder: Path) -> list[str]:
    """What generation_config.json of a model's folder asks for, as at most one sentence."""
    try:
        asked = json.loads(read_text(folder / _FILE) or "{}")
    except (TokenizerError, ValueError, RecursionError):
        asked = {}  # reading the folder's tokenizer refuses such a file; nothing else reads it
    if not isinstance(asked, dict):
        return []
    sampled = ("do_sample", *_SAMPLING) if asked.get("do_sample") is True else ()
    kept = {name: asked[name] for name in sampled if asked.get(name) is not None}
    for name, neutral in _OTHERS.items():
        if asked.get(name) not in (None, [], {}, *neutral):
            kept[name] = asked[name]
    return _said(_FILE, kept)


def asked_by_metadata(metadata: Mapping[str, Any]) -> list[str]:
    """What the metadata of a GGUF file asks for, as at most one sentence."""
    wanted = ("general.sampling.", "tokenizer.ggml.suppress_tokens")
    return _said("metadata", {k: value for k, value in metadata.items() if k.startswith(wanted)})


def _said(what: str, asked: Mapping[str, Any]) -> list[str]:
    if not asked:
        return []
    shown = ", ".join(f"{name} {' '.join(str(value).split()):.40}" for name, value in asked.items())
    return [
        f"{what} asks for {shown:.300}, which is not used: "
        "flags alone say how tokens are chosen, greedily without any"
    ]
