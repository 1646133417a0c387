"""The server answers clients and a load generator that others have written."""

import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests import serving
from tests.serving import batcher_of, running

pytestmark = pytest.mark.serve
TEXT = Path(__file__).parents[1] / "text"
GREEDY = {"model": "smollm2-135m", "temperature": 0}
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def server(smollm2, smollm2_engine):
    model = serving.served(smollm2.config, smollm2.tokenizer, context=256)
    batcher = batcher_of(smollm2_engine("1x1x1"), 4, 256, smollm2.tokenizer)
    with running(batcher, model, rows=4, most_waiting=20, key="key", stall=60) as server:
        yield server


@pytest.fixture(scope="module")
def base_url(server):
    return "http://{}:{}/v1".format(*server.address)


@pytest.fixture(scope="module")
def client(base_url):
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=base_url, api_key="key", max_retries=0)


def test_openais_client_gets_chats_whole_and_streamed_with_log_probabilities(client):
    ask = functools.partial(client.chat.completions.create, messages=QUESTION, **GREEDY)
    whole = ask(max_tokens=16, logprobs=True, top_logprobs=2)
    assert "Paris" in whole.choices[0].message.content
    scored = whole.choices[0].logprobs.content
    assert len(scored) == whole.usage.completion_tokens
    best = [each.top_logprobs[0].logprob for each in scored]
    assert best == pytest.approx([each.logprob for each in scored], abs=1e-4)
    *chunks, last = ask(max_tokens=16, stream=True, stream_options={"include_usage": True})
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert last.usage.total_tokens == whole.usage.total_tokens and last.choices == []
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_openais_client_gets_completions_that_stop(client):
    ask = functools.partial(client.completions.create, prompt="One, two, three,", **GREEDY)
    whole = ask(max_tokens=12, logprobs=2)
    text, told = whole.choices[0].text, whole.choices[0].logprobs
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == 12
    assert told.text_offset[0] == 0 and "".join(told.tokens) == text
    stop = text[5:8]
    for stops in (stop, ["no such text", stop]):
        short = ask(max_tokens=12, stop=stops).choices[0]
        assert (short.text, short.finish_reason) == (text[: text.find(stop)], "stop")
    streamed = ask(max_tokens=12, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == text
    several = client.completions.create(prompt=["One", "Two"], n=2, max_tokens=2, seed=1, **GREEDY)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]


def test_openais_client_knows_every_error(client, base_url):
    import openai

    assert [model.id for model in client.models.list()] == ["smollm2-135m"]
    with pytest.raises(openai.NotFoundError, match="which is not served"):
        client.completions.create(model="other", prompt="a")
    with pytest.raises(openai.BadRequestError, match="echo is true") as refused:
        client.completions.create(prompt="a", echo=True, **GREEDY)
    assert refused.value.param == "echo"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=base_url, api_key="other", max_retries=0).models.list()


def test_prometheus_own_parser_reads_the_metrics(server, client):
    parser = pytest.importorskip("prometheus_client.parser")
    client.completions.create(prompt="a", max_tokens=3, **GREEDY)
    page = server.ask("GET", "/metrics", authorization="Bearer key").body.decode()
    families = {family.name: family for family in parser.text_string_to_metric_families(page)}
    assert families["floorline_first_token_seconds"].type == "histogram"
    (sample,) = families["floorline_generated_tokens"].samples
    assert sample.value >= 3


def test_llama_benchy_measures_the_server(base_url, smollm2, tmp_path):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    program = shutil.which("llama-benchy", path=path)
    if program is None:
        pytest.skip("llama-benchy is not installed")
    smollm2.tokenizer._parts.backend.save(str(tmp_path / "tokenizer.json"))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(TEXT))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as books:
        threading.Thread(target=books.serve_forever, daemon=True).start()
        command = [program, "--base-url", base_url, "--api-key", "key", "--model", "smollm2-135m"]
        command += ["--tokenizer", str(tmp_path / "tokenizer.json"), "--skip-coherence"]
        command += ["--book-url", f"http://127.0.0.1:{books.server_port}/river.txt"]
        command += ["--pp", "64", "--tg", "16", "--exact-tg", "--concurrency", "1", "4"]
        command += ["--runs", "1", "--latency-mode", "generation", "--exit-on-first-fail"]
        command += ["--format", "json", "--save-result", str(tmp_path / "result.json")]
        own = {"HOME": str(tmp_path), "NO_PROXY": "127.0.0.1", "PYTHONPATH": ""}
        ended = subprocess.run(
            command, env=os.environ | own, capture_output=True, text=True, timeout=300
        )
        books.shutdown()
    assert ended.returncode == 0, ended.stdout + ended.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    print(json.dumps(result)[:3000])
    assert len(result["benchmarks"]) == 2
    assert "No complete token_ids" not in ended.stdout
