"""Writes tests/references/quirks.npz: what transformers makes of each row of `tests.quirks`.

Under a row's key stand the logits after the longest prompt of its folder; a row that transformers
refuses is not there. Needs the extra `parity`.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.family_cases import FOLDER
from tests.quirks import QUIRKS, Quirk, planted

PATH = Path(__file__).parent / "references/quirks.npz"
PROMPT = 2  # the number of the prompt in a folder's reference.npz


def logits_of(quirk: Quirk, folder: Path) -> np.ndarray:
    """Logits [V] after the prompt, of a model that transformers reads from this folder."""
    import torch
    from transformers import AutoModelForCausalLM

    shutil.copytree(FOLDER / quirk.case, folder, dirs_exist_ok=True)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(planted(values, quirk)))
    torch.manual_seed(0)  # of what it draws where it finds no weights
    how = {} if "_attn_implementation" in quirk.fields else {"attn_implementation": "eager"}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **how).eval()
    prompt = np.load(folder / "reference.npz")[f"prompt_{PROMPT}"]
    with torch.no_grad():
        return model(torch.tensor(prompt[None].astype(np.int64))).logits[0, -1].numpy()


def main() -> None:
    """Asks transformers for every row."""
    found = {}
    for quirk in QUIRKS:
        with tempfile.TemporaryDirectory() as folder:
            try:
                found[quirk.key] = logits_of(quirk, Path(folder))
            except Exception as error:  # of any kind: what it cannot read, it says in many ways
                print(f"{quirk.key}: {str(error).splitlines()[0]:.100}", file=sys.stderr)
    np.savez_compressed(PATH, **found)


if __name__ == "__main__":
    main()
