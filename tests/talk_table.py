"""What is said of batch size, latency and cost, each with a command that shows it and its output.

`python -m tests.talk_table` writes them to the page of `profiles/expected`. Estimates are run
again; what was measured is taken from the recorded runs. It is kept here, above all packages,
because it runs the scripts.
"""

import dataclasses
import json
import re
import shlex
import tempfile
from pathlib import Path

from profiles.report.lines import fit_lines
from profiles.report.pages import ROOT, Part
from tests.scripts.running import run_many

RESULTS = ROOT / "profiles/results/smollm2-135m-cpu"
PART = Part("profiles/expected/README.md", "talk", "tests.talk_table")
LLAMA = "--model=llama3-70b --topology=v5e:4x4 --weight_dtype=int8 --kv_dtype=int8"
H100 = "--model=llama3-70b --topology=h100:8 --weight_dtype=int8 --kv_dtype=int8"
DEEPSEEK = "--model=deepseek-v3-even --topology=gb200:72 --weight_dtype=fp8"
SMALL = "--model=llama3-8b --topology=h100:1"
ROWS = r"^context|^ +[\d,]+ "


@dataclasses.dataclass(frozen=True)
class Statement:
    """Something that holds, and how to see it.

    Attributes:
      says: the statement.
      command: what shows it, without ``python``.
      shows: pattern of the lines that do; empty where they are recorded ones.
    """

    says: str
    command: str
    shows: str = ""


STATEMENTS = (
    Statement(
        "Batch size drives latency and cost. Cost per token is time over batch",
        f"scripts/estimate.py {LLAMA} --batch=1,16,64",
        ROWS,
    ),
    Statement(
        "Compute is linear in batch; memory is a constant, the weights, plus a KV cache that "
        "grows with batch and context",
        f"scripts/estimate.py {LLAMA} --context=2048 --economics",
        "floor of a step",
    ),
    Statement(
        "A step takes the larger of the two: memory, then compute",
        f"scripts/estimate.py {H100} --context=128 --batch=16,128,512",
        ROWS,
    ),
    Statement(
        "The weight read is a lower bound (measured, on a CPU)",
        "scripts/profile_decode.py",
    ),
    Statement(
        "Context moves the crossover, and beyond some length there is none",
        f"scripts/estimate.py {H100} --context=128,1024,4096 --batch=512 --economics",
        ROWS + "|balanced context",
    ),
    Statement(
        "Batching is worth up to 1000 times, and more for sparse models. The simple equation has "
        "batch 1 read all experts; it reads those that its token chooses. Total over active "
        "parameters, which counts here, is not 256 over 8, which attention and a shared expert "
        "are not part of, nor the 256 over 32 that the talk takes",
        f"scripts/estimate.py {DEEPSEEK} --context=1024 --economics",
        "critical batch|batching gain|sparsity",
    ),
    Statement(
        "A KV cache is essential (measured, on a CPU)",
        'scripts/generate.py --prompt="Once upon a time" --max_new_tokens=64 --no_cache',
    ),
    Statement(
        "Decoding is dominated by fetches",
        f"scripts/estimate.py {LLAMA} --batch=8 --context=4096 --economics",
        ROWS + "|fetches",
    ),
    Statement(
        "Speculation multiplies several tokens for each read, so it pays while memory is the "
        "bound. For a dense model without a context the last batch is the critical one times "
        "tokens kept over tokens multiplied: 295 x 1.8 / 2 = 266 here; a cache moves it up. A "
        "mixture's drafts read more experts, so there it may not pay at few sequences either",
        f"scripts/estimate.py {SMALL} --context=1 --drafted=1 --acceptance=0.8 --batch=64",
        "speculation",
    ),
    Statement(
        "The same of a mixture, whose drafts choose experts of their own",
        f"scripts/estimate.py {DEEPSEEK} --drafted=3 --acceptance=0.3 --batch=1",
        "speculation",
    ),
    Statement(
        "A price says which memory a cache is in. Five dollars per million tokens, 6.25 if they "
        "are kept for five minutes: flash; for an hour: disk, whose drain times in round figures "
        "are a minute and an hour. Today's largest devices drain more slowly, because they have "
        "grown and their interfaces have not: a minute is 0.9 TB of flash at that rate, an hour 1 "
        "TB of disk. By them an hour is flash still. The quarter that five minutes add to the "
        "price is less than HBM would cost, if a price is what computing again costs here. In "
        "dollars the 1.25 are more than any tier costs, at what devices cost to buy, and a chip "
        "at its cost of ownership by SemiAnalysis",
        f"scripts/estimate.py {DEEPSEEK} --context=8192 --held_s=300,3600 "
        "--price_per_chip_hour=2.21",
        "read once|^-  held|holding|^-  prices",
    ),
    Statement(
        "What traffic fills a system: 2,000 sequences x 64 steps per second = 128,000 tokens per "
        "second in round figures, a thousandth of what the largest services pass. Here the "
        "critical batch is higher, by total over active parameters, and a step takes the 24.7 ms "
        "that a GB200 takes to read its memory, not a 64th of a second. Published traffic has "
        "grown, and counts prompts too",
        f"scripts/estimate.py {DEEPSEEK} --context=1024 --economics",
        "traffic",
    ),
    Statement(
        "MFU halves at twice the balanced context; with sparse attention that reads the square "
        "root of the context, at the square of that. Twice 2,942 is 5,884: the rest is attention's "
        "own arithmetic, which grows with context too and is left out of round figures",
        f"scripts/estimate.py {H100} --context=128,1024,4096 --batch=512 --economics",
        "balanced|MFU",
    ),
    Statement(
        "Latent attention does so much arithmetic for each byte of its cache that MFU never halves",
        f"scripts/estimate.py {DEEPSEEK} --context=1024 --economics",
        "balanced|MFU",
    ),
    Statement(
        "Training and serving alike move training about 100 times past the compute-optimal point: "
        "for example (figures chosen here) 200 trillion tokens, as many trained on as served, over "
        "20 for each of 100 billion active parameters. Here a token served is a third of a token "
        "trained on, 2N of 6N, and DeepSeek-V3 has 36.6 billion active ones: the two nearly "
        "cancel. Serving at a low MFU costs more, so training may too",
        f"scripts/estimate.py {DEEPSEEK} --batch=2048 --served_tokens_per_s=5e7",
        "served|compute-optimal",
    ),
    Statement(
        "A pipeline over racks hides its hops if (1/8) x experts that a token activates x 2 x "
        "layers per stage is at least 1, which one layer of 8 experts is. It saves weights per "
        "chip and no cache, since as many batches are under way as there are stages, and hops of "
        "a few milliseconds make 20 ms 30 over four stages, as four of 2.5 would (chosen "
        "here). The network is a ninth of the fabric, and the step without hops is a floor at a "
        "batch of 2,048, not 20 ms",
        f"scripts/estimate.py {DEEPSEEK} --batch=2048 --stages=4 --hop_ms=2.5",
        "pipeline|hops",
    ),
    Statement(
        "A plan takes a pipeline where it wins. Stages share out the weights, so a larger batch "
        "fits, or as large a one in a layout that copies weights and sends less; where hops take "
        "long, as many chips in one slice are cheaper",
        "scripts/plan.py --model=llama3.1-70b --topology=v5e:4x4,v5e:4x8,v5e:4x4*2 --context=1000 "
        "--weight_dtype=int8 --kv_dtype=int8",
        r"^choice|^  (floor|expected|pipeline|v5e)",
    ),
    Statement(
        "The same with hops of a hundred milliseconds",
        "scripts/plan.py --model=llama3.1-70b --topology=v5e:4x4,v5e:4x8,v5e:4x4*2 --context=1000 "
        "--weight_dtype=int8 --kv_dtype=int8 --hop_ms=100",
        r"^choice|^  pipeline",
    ),
    Statement(
        "Layers of experts stay in one rack: by a plan, two cost more for each token",
        f"scripts/plan.py {DEEPSEEK.replace(':72', ':72,gb200:72*2')} --price_per_chip_hour=2.21",
        r"^choice|^  (gb200|pipeline)",
    ),
    Statement(
        "An expert layer wants one rack. Over two, half of the tokens take a network eight times "
        "slower, so 4 times as long; here it is nine times slower, and a chip in one rack of 72 "
        "keeps a 72nd for itself: 9 / 2 x 72 / 71. 256 experts are 4 each on 64 of 72 chips. Twice "
        "the chips have half the bytes each, so that the layer takes 2.28 times as long in all",
        f"scripts/estimate.py {DEEPSEEK.replace(':72', ':72,gb200:72*2')} --batch=2048 --economics",
        "expert layer|^gb200:",
    ),
    Statement(
        "The size of the fast domain sets latency: a step reads the weights with all of its chips "
        "at once, 8, 72 or 500 of them. Seven racks of 72 are 504 chips: the floor falls as one "
        "over chips, but tokens take no less time to their experts than in one rack. TPU 8i, of "
        "the generation announced in April 2026, has up to 1,152 chips in one domain, where 512 "
        "take a ninth of that time. Of Rubin GPUs no sourced figure of arithmetic in bfloat16 was "
        "found, and of MI400 none of the cache on chip, so neither is among the chips; "
        "--hbm_bandwidth and others try them",
        f"scripts/estimate.py {DEEPSEEK.replace(':72', ':8,gb200:72,gb200:504,tpu8i:512')} "
        "--context=8192 --batch=256 --economics",
        r"^topology|^(gb200|tpu8i):\d+ |tokens to",
    ),
)


def text() -> str:
    """All of them, in Markdown."""
    ran, recorded = _estimates(), _recorded()
    parts = []
    for each in STATEMENTS:
        printed = ran.get(each.command) or recorded[each.command]
        lines = "\n".join(line for line in printed if re.search(each.shows, line))
        parts.append(f"{each.says}:\n\n```\n$ python {each.command}\n{lines}\n```\n")
    return "\n".join(parts)


def _estimates() -> dict[str, list[str]]:
    """What each command prints, in lines; a command of several statements runs once."""
    found = {}
    for script in ("estimate.py", "plan.py"):
        commands = [each.command for each in STATEMENTS if each.shows and script in each.command]
        cases = {command: shlex.split(command)[1:] for command in commands}
        with tempfile.TemporaryDirectory() as folder:
            ended = run_many(script, cases, folder=Path(folder))
        found |= {command: run.stdout.splitlines() for command, run in ended.items()}
    return found


def _recorded() -> dict[str, list[str]]:
    profile = json.loads((RESULTS / "profile.json").read_text())
    cache = (RESULTS / "no_cache.txt").read_text().strip()
    lines = {"profile_decode": fit_lines(profile["fits"])[:1], "generate": [cache]}
    return {
        each.command: found
        for each in STATEMENTS
        for name, found in lines.items()
        if name in each.command
    }


if __name__ == "__main__":
    PART.write(text())
