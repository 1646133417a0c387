"""Generation settings in a model's files that are ignored, as messages for the user.

The flags of a run alone say how tokens are chosen, greedily without any. Names and defaults are
from `GenerationConfig` in transformers and from llama.cpp's keys in `general.sampling`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from decode.tokenizer_json import read_text
from decode.tokenizer_parts import TokenizerError

_FILE = "generation_config.json"
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff")
SAMPLING = (*SAMPLING, "eta_cutoff", "renormalize_logits")
# Settings that change the tokens of greedy generation too, with the values that change nothing.
OTHERS: Mapping[str, tuple[Any, ...]] = {
    "repetition_penalty": (1,),
    "encoder_repetition_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "length_penalty": (1,),
    "diversity_penalty": (0,),
    "constraints": (),
    "force_words_ids": (),
    "guidance_scale": (1,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "max_new_tokens": (),
    "max_length": (),
    "max_time": (),
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
    "token_healing": (False,),
    "watermarking_config": (),
}


def ignored_in_folder(folder: Path) -> list[str]:
    """What generation_config.json of a model's folder asks for, as at most one sentence."""
    try:
        settings = json.loads(read_text(folder / _FILE) or "{}")
    except (TokenizerError, ValueError, RecursionError):
        settings = {}  # reading the folder's tokenizer refuses such a file; nothing else reads it
    if not isinstance(settings, dict):
        return []
    sampled = ("do_sample", *SAMPLING) if settings.get("do_sample") is True else ()
    ignored = {name: settings[name] for name in sampled if settings.get(name) is not None}
    for name, neutral in OTHERS.items():
        if settings.get(name) not in (None, [], {}, *neutral):
            ignored[name] = settings[name]
    return _message(_FILE, ignored)


def ignored_in_metadata(metadata: Mapping[str, Any]) -> list[str]:
    """What the metadata of a GGUF file asks for, as at most one sentence."""
    prefixes = ("general.sampling.", "tokenizer.ggml.suppress_tokens")
    return _message(
        "metadata", {k: value for k, value in metadata.items() if k.startswith(prefixes)}
    )


def _message(what: str, settings: Mapping[str, Any]) -> list[str]:
    if not settings:
        return []
    shown = ", ".join(
        f"{name} {' '.join(str(value).split()):.40}" for name, value in settings.items()
    )
    return [
        f"{what} asks for {shown:.300}, which is not used: "
        "flags alone say how tokens are chosen, greedily without any"
    ]
