"""Runs of `generate.py` that are refused, each in one line."""

from tests.family_cases import FOLDER

RANDOM = ["--model=tiny", "--random_weights"]
TOKENS = [*RANDOM, "--prompt_tokens=1,2,3"]
TEXT = ["--prompt=the"]
TALK = ["--model=tiny.gguf", "--chat", "--turns"]
TEN = [*RANDOM, "--prompt_tokens=1,2,3,4,5,6,7,8,9,10"]

# Name -> arguments, exit code, and what the message must say in order.
REFUSED = {
    # Files.
    "missing file": (["--model=none.gguf", *TEXT], 1, "none.gguf", "No such file", "; give"),
    "truncated": (["--model=truncated.gguf", *TEXT], 1, "truncated.gguf", "; the file is damaged"),
    "corrupt": (["--model=corrupt.gguf", *TEXT], 1, "corrupt.gguf", "; the file is damaged"),
    "no GGUF": (["--model=text.gguf", *TEXT], 1, "start of text.gguf is", "; give a GGUF file"),
    "empty file": (["--model=empty.gguf", *TEXT], 1, "empty.gguf, which is empty; fetch it again"),
    "a part missing": (
        ["--model=half-00001-of-00002.gguf", *TEXT],
        1,
        "half-00002-of-00002.gguf is part 2 of 2 but missing from",
        "; fetch it too",
    ),
    "another part": (
        ["--model=tiny-00003-of-00003.gguf", *TEXT],
        1,
        "tiny-00003-of-00003.gguf, part 3 of 3; give the first, ",
        "tiny-00001-of-00003.gguf",
    ),
    "a folder": (["--model=./", *TEXT], 1, "neither config.json nor floorline.json; give"),
    "architecture": (["--model=architecture.gguf", *TEXT], 1, "'gptneox'; supported are llama"),
    "lacking": (["--model=lacking.gguf", *TEXT], 1, "1 missing (blk.1.ffn_up.weight)", "; give"),
    "left over": (
        ["--model=crowded.gguf", *TEXT],
        1,
        "1 left over ('blk.0.attn_q_norm.weight')",
        "; ",
    ),
    "misshapen": (
        ["--model=misshapen.gguf", *TEXT],
        1,
        "1 misshapen (blk.0.ffn_down.weight [32, 65] for [32, 64])",
        "; ",
    ),
    "no template": (["--model=untemplated.gguf", "--chat", *TEXT], 2, "chat template is missing"),
    "a path too long": ([f"--model={'a/' * 3000}", *TEXT], 2, "...", "no path", "; give"),
    # Folders.
    "no such folder": (["--model=none/here", *TEXT], 1, "none/here", "No such file", "; give"),
    "shard": (["--model=./shardless", *TEXT], 1, "model-00002-of-00005", "missing from", "; fetch"),
    "family": (
        ["--model=./family", *TEXT],
        1,
        "model_type",
        "is 'mamba'; supported are deepseek_v2, ",
    ),
    "field": (["--model=./field", *TEXT], 1, "'logits_scaling'", "is 2.0; this may change the"),
    "quantized": (["--model=./quantized", *TEXT], 1, "'gptq'", "are not read; give"),
    "text for a folder of ids": (
        [f"--model={FOLDER / 'qwen2'}", *TEXT],
        2,
        "qwen2 has no tokenizer; pass --prompt_tokens",
    ),
    # Models by name.
    "unknown model": (["--model=gpt5", *TEXT], 2, "model is 'gpt5'", "; ", "llama3-8b", "tiny"),
    "weights not had": (["--model=llama3-8b", *TEXT], 2, "model is 'llama3-8b'", "random_weights"),
    "random file": (["--model=tiny.gguf", "--random_weights", *TEXT], 2, "model is 'tiny.gguf'"),
    "four-bit floats": (
        [*TOKENS, "--weight_dtype=nvfp4"],
        2,
        "--weight_dtype is nvfp4",
        "does not run; use one of float32",
        "estimate.py",
    ),
    # Meshes and layouts.
    "five devices": ([*TOKENS, "--devices=5"], 2, "d_ff is 128", "z=5", "; use", "shards"),
    "three on y": ([*TOKENS, "--mesh=3x1"], 2, "d_ff is 128", "y=3", "; use 1, 2, 4 or 8 shards"),
    "mesh beside devices": (
        [*TOKENS, "--mesh=2x2", "--devices=8"],
        2,
        "--mesh is 2x2, of 4 devices, beside",
        "; leave",
    ),
    "mesh with a zero": ([*TOKENS, "--mesh=2x0"], 2, "mesh is '2x0'; write"),
    "mesh of letters": ([*TOKENS, "--mesh=axb"], 2, "mesh is 'axb'; write"),
    "mesh of four": ([*TOKENS, "--mesh=1x1x1x1"], 2, "mesh is '1x1x1x1'; write"),
    "no devices": ([*TOKENS, "--devices=0"], 2, "--devices is '0'", "; "),
    "devices in words": ([*TOKENS, "--devices=two"], 2, "--devices is 'two'", "; "),
    "list of devices": ([*TOKENS, "--devices=1,2"], 2, "--devices is '1,2'", "; "),
    "experts of none": (
        [*TOKENS, "--expert_parallel"],
        2,
        "--expert_parallel is true, but tiny",
        "; ",
    ),
    "unknown layout": ([*TOKENS, "--layout=3d"], 2, "layout is '3d'; use one of weight_stat"),
    # Prompts.
    "no prompt": (RANDOM, 2, "--prompt is not given; pass --prompt=TEXT"),
    "empty prompt": (["--model=tiny.gguf", "--prompt="], 2, "--prompt is empty; give"),
    "empty tokens": ([*RANDOM, "--prompt_tokens="], 2, "--prompt_tokens is ''; use token ids"),
    "tokens in words": ([*RANDOM, "--prompt_tokens=1,a"], 2, "--prompt_tokens is '1,a'; use"),
    "superscript token": ([*RANDOM, "--prompt_tokens=²"], 2, "--prompt_tokens is '²'; use"),
    "unknown token": ([*RANDOM, "--prompt_tokens=256"], 2, "token 256", "; use ids from 0 to 255"),
    "text for no tokenizer": ([*RANDOM, *TEXT], 2, "tiny", "no tokenizer; pass --prompt_tokens"),
    "beyond the model": (
        [*TEN, "--max_new_tokens=503"],
        2,
        "10 tokens and max_new_tokens is 503, but max_context of tiny is 512; shorten",
    ),
    "no new tokens": ([*TOKENS, "--max_new_tokens=0"], 2, "max_new_tokens is 0; use a positive"),
    "no token a dispatch": (
        [*TOKENS, "--tokens_per_dispatch=0"],
        2,
        "tokens_per_dispatch is 0; use a positive",
    ),
    "dispatch beyond the end": (
        [*TOKENS, "--max_new_tokens=8", "--tokens_per_dispatch=9"],
        2,
        "tokens_per_dispatch is 9; use a positive integer, at most the 8 of max_new_tokens",
    ),
    "empty stop": (["--model=tiny.gguf", *TEXT, "--stop="], 2, "--stop is ''", "; give some text"),
    "unknown stop": ([*TOKENS, "--stop=256"], 2, "--stop is '256', which is no token id of tiny"),
    "unreadable stop": ([*TOKENS, "--stop=ab"], 2, "--stop is 'ab'", "and no text that its"),
    "template of no chat": (
        [*TOKENS, "--chat_template=rag"],
        2,
        "--chat_template is given, but --chat is not; leave it out",
    ),
    "unknown template": (
        ["--model=tiny.gguf", *TEXT, "--chat", "--chat_template=rag"],
        2,
        "chat template is 'rag', which is unknown; use default, or the path of a file",
    ),
    "chunk of no tiles": ([*TOKENS, "--chunk=40"], 2, "chunk is 40 tokens", "of 16; use 32 or 48"),
    "draft of another vocabulary": (
        [*TOKENS, "--draft=llama3-8b"],
        2,
        "vocabulary of draft llama3-8b is 128256 tokens and that of tiny is 256; use a draft",
    ),
    "draft of none": ([*TOKENS, "--draft_tokens=2"], 2, "--draft_tokens is given, but --draft is"),
    "draft of turns": ([*TALK, *TEXT, "--draft=ngram"], 2, "--draft is given, but a conversation"),
    "turns of no chat": (
        ["--model=tiny.gguf", "--turns"],
        2,
        "--turns is set without --chat; pass",
    ),
    "turns of two": ([*TALK, *TEXT, *TEXT], 2, "--turns is one conversation; pass one --prompt"),
    "turns of ids": ([*RANDOM, "--chat", "--turns"], 2, "tiny has no tokenizer; "),
    "turns of none": (TALK, 2, "--turns has no message; pass --prompt=TEXT or lines on standard"),
    "turns too long": ([*TALK, *TEXT, "--max_context=16"], 2, "max_context of tiny is 16; shorten"),
    # Sampling.
    "negative temperature": ([*TOKENS, "--temperature=-1"], 2, "temperature is -1.0; use"),
    "no temperature": ([*TOKENS, "--temperature=nan"], 2, "temperature is nan; use"),
    "hot": ([*TOKENS, "--temperature=hot"], 2, "--temperature is 'hot'", "; see --help"),
    "top_k 0": ([*TOKENS, "--temperature=1", "--top_k=0"], 2, "top_k is 0; use a positive"),
    "top_p 0": ([*TOKENS, "--temperature=1", "--top_p=0"], 2, "top_p is 0.0; use a number above"),
    "top_p 1.5": ([*TOKENS, "--temperature=1", "--top_p=1.5"], 2, "top_p is 1.5; use a number"),
    "min_p 2": ([*TOKENS, "--temperature=1", "--min_p=2"], 2, "min_p is 2.0; use a number from 0"),
    "greedy filter": ([*TOKENS, "--top_k=5"], 2, "temperature is 0", "top_k has no effect; give"),
    "negative seed": ([*TOKENS, "--seed=-1"], 2, "--seed is '-1'", "[0, 4294967295]", "; "),
    "great seed": ([*TOKENS, "--seed=4294967296"], 2, "--seed is '4294967296'", "; "),
    # Flags and output.
    "unknown flag": ([*TOKENS, "--promt=a"], 2, "flag is --promt", "unknown (near prompt"),
    "no flag": ([*TOKENS, "stray"], 2, "argument is 'stray', which is no flag; see --help"),
    "flag of other values": ([*TOKENS, "--dtype=int3"], 2, "--dtype is 'int3'", "; use one of"),
    "arithmetic that is counted": (
        [*TOKENS, "--dtype=int8"],
        2,
        "--dtype is int8, which is counted but does not run; use one of float32",
        "estimate.py",
    ),
    "json below a file": ([*TOKENS, "--json=text.gguf/a/b.json"], 1, "text.gguf", "; name"),
    "json on a folder": ([*TOKENS, "--json=."], 1, "--json is ., not a regular file; name one"),
    "json on a device": ([*TOKENS, "--json=/dev/null"], 1, "--json is /dev/null", "; name one"),
    # Last, for what comes behind them in this process asks for no fewer devices.
    "absurd devices": ([*TOKENS, "--devices=1000000"], 2, "d_ff is 128", "z=1000000"),
    "absurd mesh": ([*TOKENS, "--mesh=99x99x99"], 2, "d_ff is 128", "x=99 y=99 z=99"),
}
