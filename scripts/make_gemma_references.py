"""Write llama.cpp's answers with Gemma 3 270M, which tests compare with Floorline's.

llama.cpp multiplies quantized weights by activations that it rounds to 8 bits, so two answers can
differ though both are right. Here the GGUF file is dequantized first, and llama.cpp runs the same
weights in float32 with a float32 cache. Prompts for which the largest two logits of any token
differ by less than 1e-3 are refused. Needs llama-cpp-python, which compiles
llama.cpp for minutes.

    pip install llama-cpp-python
    python scripts/make_gemma_references.py --gguf=gemma-3-270m-q4_k_m.gguf

tests/references/gemma3_270m.json holds the file's SHA-256, the versions and, for each prompt,
  text, prompt_ids    the prompt, and its tokens
  new_ids, new_text   the 32 greedy tokens that follow, and their text
  margins             [32] largest logit minus the second largest
  as_stored           how many of the 32 llama.cpp also gives with quantized weights
"""

import hashlib
import importlib
import importlib.metadata
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from profiles.peers.llama_cpp import write_plain
from sharding.error_types import FloorlineError, UsageError

_GGUF = flags.DEFINE_string("gguf", None, "Path of Gemma 3 270M as a GGUF file.")
_OUTPUT = flags.DEFINE_string("output", "tests/references/gemma3_270m.json", "File to write.")

NEW_TOKENS = 32
MARGIN = 1e-3
_STORY = (
    "The lighthouse keeper climbed the stairs every evening at dusk, carrying a lamp, a book and "
    "a small loaf of bread. On night {} he counted {} ships, and the tide stood at {} feet. "
)
PROMPTS = {
    "capital": "The capital of France is",
    "story": "Once upon a time",
    "code": "def fibonacci(n):\n    ",
    "water": "Water boils at",
    "counting": "1, 2, 3, 4,",
    # Longer than the window of 512 tokens that five of six layers have.
    "window": "".join(_STORY.format(n, 3 * n + 1, n % 7 + 2) for n in range(1, 17)) + "On night 17",
}


def answer(gguf: Path) -> dict[str, dict[str, Any]]:
    """llama.cpp's answer to each prompt."""
    library = importlib.import_module("llama_cpp")
    model = library.Llama(
        str(gguf),
        n_ctx=1024,
        n_threads=2,
        type_k=library.GGML_TYPE_F32,
        type_v=library.GGML_TYPE_F32,
        logits_all=True,
        verbose=False,
    )
    return {name: _continue(model, text) for name, text in PROMPTS.items()}


def _continue(model: Any, text: str) -> dict[str, Any]:
    prompt = model.tokenize(text.encode(), add_bos=True, special=False)
    tokens, margins = [], []
    model.reset()
    model.eval(prompt)
    for _ in range(NEW_TOKENS):
        logits = np.array(model.scores[model.n_tokens - 1])
        second, best = np.sort(logits)[-2:]
        margins.append(round(float(best - second), 6))
        tokens.append(int(logits.argmax()))
        model.eval(tokens[-1:])
    new_text = model.detokenize(tokens).decode()
    return {
        "text": text,
        "prompt_ids": prompt,
        "new_ids": tokens,
        "new_text": new_text,
        "margins": margins,
    }


def references(gguf: Path) -> dict[str, Any]:
    """The document to write.

    Raises:
      FloorlineError: the largest two logits of a token were almost equal.
    """
    with tempfile.TemporaryDirectory() as scratch:
        plain = Path(scratch) / "float32.gguf"
        write_plain(gguf, plain, "float32")
        answers = answer(plain)
    stored = answer(gguf)
    for name, entry in answers.items():
        if min(entry["margins"]) < MARGIN:
            raise FloorlineError(
                f"margin of {name!r} is {min(entry['margins'])}; ask something else"
            )
        pairs = list(zip(entry["new_ids"], stored[name]["new_ids"], strict=True))
        entry["as_stored"] = next((n for n, (a, b) in enumerate(pairs) if a != b), NEW_TOKENS)
    names = ("llama_cpp_python", "gguf", "numpy")
    return {
        "model": "Gemma 3 270M",
        "gguf": gguf.name,
        "sha256": hashlib.sha256(gguf.read_bytes()).hexdigest(),
        "versions": {name: importlib.metadata.version(name) for name in names},
        "prompts": answers,
    }


def main(argv: Sequence[str]) -> int:
    """Writes the file and prints a summary."""
    try:
        if len(argv) > 1:
            raise UsageError(f"argument is {argv[1]!r}, which no flag takes; see --help")
        if _GGUF.value is None:
            raise UsageError("--gguf is not given; give the path of Gemma 3 270M as GGUF")
        document = references(Path(_GGUF.value))
    except FloorlineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    prompts = document.pop("prompts")
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in document.items()]
    rows = [f"    {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in prompts.items()]
    body = ",\n".join([*lines, '  "prompts": {\n' + ",\n".join(rows) + "\n  }"])
    Path(_OUTPUT.value).write_text(f"{{\n{body}\n}}\n", encoding="utf-8")
    for name, entry in prompts.items():
        print(
            f"{name:9} {len(entry['prompt_ids']):4} tokens, smallest margin "
            f"{min(entry['margins']):.4f}, {entry['as_stored']} of {NEW_TOKENS} as stored: "
            f"{entry['new_text']!r:.60}"
        )
    return 0


if __name__ == "__main__":
    app.run(main)
