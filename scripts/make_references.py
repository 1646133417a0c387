"""Write transformers' answers with SmolLM2-135M, which tests compare with Floorline's.

Hugging Face transformers loads SmolLM2-135M-Instruct from a GGUF file (dequantized to float32),
reads a few prompts of different lengths and kinds, and continues each one greedily until
`<|im_end|>` or 64 tokens. Its answers are stored, so that the tests need neither torch nor
transformers:

    pip install -e '.[parity]'
    python scripts/make_references.py --gguf=SmolLM2-135M-Instruct.Q4_1.gguf

smollm2_135m.json holds
  model, gguf, sha256, dtype, attention, eos_id, tokenizer, versions: how it was made;
  prompts: a list of objects, each with
    name, text          the prompt; also `messages` if the text is a rendered chat
    prompt_ids          [P] the prompt's tokens
    new_ids             [N] the greedy continuation; when it stopped early the last one is eos_id
    new_text            the continuation as text, special tokens left out
    stopped             "eos" or "length"
    log_probs           [N] log-softmax of the raw logits at each chosen token
    margins             [N] largest logit minus the second largest; if it is almost 0,
                        a correct program may choose another token and continue differently
    largest_magnitude   largest |logit| at the prompt's last position
    uncached_difference largest |log_probs - those of one pass without a cache|: transformers'
                        rounding errors, which bound the precision of any test.

smollm2_135m.npz holds the logits at each prompt's last position, thinned to keep it small:
  NAME_largest_ids      [256] int32, tokens of the 256 largest logits, largest first
  NAME_largest_logits   [256] float32
  spaced_ids            [768] int32, tokens evenly spaced over the vocabulary, for every prompt
  NAME_spaced_logits    [768] float32

Tokens are those of the published tokenizer, which separates all digits and then splits as GPT-2
does. transformers loses the rule for digits when it rebuilds a tokenizer from a GGUF file, so it is
built here from the file's vocabulary and merges.
"""

import hashlib
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from profiles.peers import hugging_face
from profiles.peers.messages import Job
from sharding.error_types import FloorlineError, UsageError

_GGUF = flags.DEFINE_string("gguf", None, "Path of SmolLM2-135M-Instruct as a GGUF file.")
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", "tests/references", "Folder for smollm2_135m.json and smollm2_135m.npz."
)

STEM = "smollm2_135m"
NEW_TOKENS = 64
LARGEST, SPACED = 256, 768
# Cached and uncached passes differ by float32 rounding only; a larger difference is a failed load.
MOST_DIFFERENCE = 1e-3
SPECIAL_TOKEN = 3  # GGUF's token type "control"

_MESSAGES = [
    {"role": "system", "content": "You are a helpful assistant. Answer briefly."},
    {"role": "user", "content": "Why is the sky blue?"},
]
PROMPTS: list[dict[str, Any]] = [
    {"name": "short", "text": "The capital of France"},
    {
        "name": "plain",
        "text": "The lighthouse keeper climbed the stairs every evening at dusk, carrying a lamp, "
        "a book and a small loaf of bread. For thirty years nothing had changed: the same gulls, "
        "the same tide, the same long beam turning slowly over the dark water. Ships passed far "
        "away and never stopped, and he liked to imagine where each of them was going and who "
        "stood on deck watching his light. Then, one night in the middle of winter, he saw "
        "another light answer his own from somewhere out at sea. It blinked twice, waited, and "
        "blinked again, and",
    },
    {
        "name": "chat",
        "messages": _MESSAGES,
        "text": "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in _MESSAGES)
        + "<|im_start|>assistant\n",
    },
    {
        "name": "code",
        "text": "# Leap years from 1896 to 2024\ndef leap(year):\n    return year %   4 == 0 and "
        "(year % 100 != 0 or year % 400 == 0)\n\nprint([y for y in range(1896, 2025) if",
    },
    {
        "name": "french",
        "text": "Où est passé le chat ? Il dort déjà près de la fenêtre, « comme d'habitude ». "
        "Demain matin, à l'école, les élèves",
    },
]


def build_tokenizer(gguf: Path) -> tuple[Any, int]:
    """The published SmolLM2 tokenizer, from a GGUF file's vocabulary and merges.

    Returns:
      (a `tokenizers.Tokenizer`, the id of the end-of-turn token).
    """
    library = importlib.import_module("tokenizers")
    fields = importlib.import_module("gguf").GGUFReader(gguf).fields
    known = {name: field for name, field in fields.items() if name.startswith("tokenizer.ggml.")}
    read = {name.rpartition(".")[2]: field.contents() for name, field in known.items()}
    if read.get("pre") != "smollm":
        raise UsageError(
            f"tokenizer.ggml.pre is {read.get('pre')!r}; give a GGUF file of SmolLM2, 'smollm'"
        )
    vocabulary = {token: index for index, token in enumerate(read["tokens"])}
    merges = [tuple(merge.split(" ")) for merge in read["merges"]]
    tokenizer = library.Tokenizer(library.models.BPE(vocab=vocabulary, merges=merges))
    split = library.pre_tokenizers
    tokenizer.pre_tokenizer = split.Sequence(
        [
            split.Digits(individual_digits=True),
            split.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = library.decoders.ByteLevel()
    special = [t for t, kind in zip(read["tokens"], read["token_type"], strict=True)
               if kind == SPECIAL_TOKEN]  # fmt: skip
    tokenizer.add_special_tokens([library.AddedToken(t, normalized=False) for t in special])
    return tokenizer, read["eos_token_id"]


def continue_greedily(torch: Any, model: Any, prompt_ids: list[int], eos_id: int) -> dict[str, Any]:
    """Continue one prompt greedily with a KV cache, and check it against a pass without one.

    Returns:
      `new_ids`, `log_probs` and `margins` as stored, `uncached_difference`, and `last_logits`,
      the [V] float32 logits at the prompt's last position.
    """
    new_ids: list[int] = []
    rows: list[Any] = []
    cache, feed = None, prompt_ids
    while len(new_ids) < NEW_TOKENS and eos_id not in new_ids:
        output = model(torch.tensor([feed]), past_key_values=cache, use_cache=True)
        rows.append(output.logits[0, -1])
        new_ids.append(int(rows[-1].argmax()))
        cache, feed = output.past_key_values, new_ids[-1:]
    logits = torch.stack(rows)
    full = model(torch.tensor([prompt_ids + new_ids[:-1]]), use_cache=False).logits[0]
    chosen = torch.tensor(new_ids)[:, None]
    cached, uncached = (
        values.double().log_softmax(-1).gather(-1, chosen)[:, 0]
        for values in (logits, full[len(prompt_ids) - 1 :])
    )
    best = logits.double().topk(2).values
    return dict(
        new_ids=new_ids,
        log_probs=[round(value, 7) for value in cached.tolist()],
        margins=[round(value, 7) for value in (best[:, 0] - best[:, 1]).tolist()],
        uncached_difference=float((cached - uncached).abs().max()),
        last_logits=logits[0].numpy(),
    )


def thin(name: str, logits: np.ndarray) -> dict[str, np.ndarray]:
    """The stored part of one [V] row of logits, by name in the file."""
    largest = np.argsort(-logits, kind="stable")[:LARGEST].astype(np.int32)
    spaced = np.linspace(0, len(logits) - 1, SPACED).round().astype(np.int32)
    return {
        f"{name}_largest_ids": largest,
        f"{name}_largest_logits": logits[largest],
        "spaced_ids": spaced,
        f"{name}_spaced_logits": logits[spaced],
    }


def answer_prompts(gguf: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """transformers' answers to all prompts, as the JSON object and the arrays to store."""
    job = Job("transformers", str(gguf), "gguf", dtype="float32", platform="cpu")
    torch, model = hugging_face.load(job, attention="eager")
    # With one thread, sums are added in the same order on every run.
    torch.set_num_threads(1)
    tokenizer, eos_id = build_tokenizer(gguf)
    prompts, arrays = [], {}
    for prompt in PROMPTS:
        prompt_ids = tokenizer.encode(prompt["text"]).ids
        with torch.inference_mode():
            answer = continue_greedily(torch, model, prompt_ids, eos_id)
        if answer["uncached_difference"] > MOST_DIFFERENCE:
            raise FloorlineError(
                f"cached minus uncached log-probability of {prompt['name']!r} is "
                f"{answer['uncached_difference']:.3g}; use another version of transformers"
            )
        logits = answer.pop("last_logits")
        arrays |= thin(prompt["name"], logits)
        entry = prompt | dict(prompt_ids=prompt_ids) | answer
        entry["new_text"] = tokenizer.decode(answer["new_ids"])
        entry["stopped"] = "eos" if answer["new_ids"][-1] == eos_id else "length"
        entry["largest_magnitude"] = float(np.abs(logits).max())
        prompts.append(entry)
    return _origin(gguf, eos_id) | dict(prompts=prompts), arrays


def _origin(gguf: Path, eos_id: int) -> dict[str, Any]:
    """How the references were made: weights, tokenizer and versions."""
    names = ("torch", "transformers", "tokenizers", "numpy")
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return dict(
        model="SmolLM2-135M-Instruct",
        gguf=gguf.name,
        sha256=digest,
        dtype="float32",
        attention="eager",
        eos_id=eos_id,
        tokenizer="tokenizers BPE from the GGUF vocabulary and merges; "
        "Sequence[Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]",
        versions={name: importlib.import_module(name).__version__ for name in names},
    )


def _as_text(record: dict[str, Any]) -> str:
    """JSON with one line per key, so that a change of one prompt changes few lines."""

    def fields(values: dict[str, Any], indent: str) -> str:
        lines = (
            f"{indent}{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}"
            for key, value in values.items()
        )
        return ",\n".join(lines)

    head = fields({key: value for key, value in record.items() if key != "prompts"}, "  ")
    prompts = ",\n".join(f"    {{\n{fields(p, '      ')}\n    }}" for p in record["prompts"])
    return f'{{\n{head},\n  "prompts": [\n{prompts}\n  ]\n}}\n'


def main(argv: Sequence[str]) -> int:
    """Writes both files and prints a summary."""
    try:
        if len(argv) > 1:
            raise UsageError(f"argument is {argv[1]!r}, which no flag takes; see --help")
        if _GGUF.value is None:
            raise UsageError("--gguf is not given; give the path of SmolLM2-135M-Instruct as GGUF")
        record, arrays = answer_prompts(Path(_GGUF.value))
    except FloorlineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    folder = Path(_OUTPUT_DIR.value)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{STEM}.json").write_text(_as_text(record), encoding="utf-8")
    np.savez_compressed(folder / f"{STEM}.npz", **arrays)
    for prompt in record["prompts"]:
        print(
            f"{prompt['name']:8s} {len(prompt['prompt_ids']):4d} prompt tokens, "
            f"{len(prompt['new_ids'])} new ({prompt['stopped']}), "
            f"smallest margin {min(prompt['margins']):.4f}, "
            f"uncached difference {prompt['uncached_difference']:.1e}"
        )
    return 0


if __name__ == "__main__":
    app.run(main)
