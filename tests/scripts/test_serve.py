"""The server as users start and end it."""

import contextlib
import http.client
import json
import re
import signal
import socket
import sys
import threading

from tests.scripts.running import SCRIPTS, each_started, run_many

TINY = ["--model=tiny", "--random_weights"]
SMALL = ["--batch=1", "--context=400", "--token_budget=16", "--port=0"]


def post(address: str, **fields) -> tuple[int, dict]:
    with contextlib.closing(http.client.HTTPConnection(address, timeout=300)) as connection:
        headers = {"content-type": "application/json", "authorization": "Bearer key"}
        connection.request("POST", "/v1/completions", json.dumps(fields), headers)
        response = connection.getresponse()
        return response.status, json.load(response)


def asking(address: str, results: list) -> threading.Thread:
    """A thread that asks for many tokens, and whose answer alone is in `results` then."""
    results.clear()
    asked = {"prompt": [1, 2], "max_tokens": 300}
    thread = threading.Thread(target=lambda: results.append(post(address, **asked)))
    thread.start()
    return thread


def test_a_server_says_where_it_is_and_ends_when_it_is_told_to(tmp_path):
    command = [sys.executable, str(SCRIPTS / "serve.py"), *TINY, *SMALL]
    # Without a folder of programs, as users start it.
    variables = {"FLOORLINE_API_KEY": "key", "JAX_COMPILATION_CACHE_DIR": ""}
    with each_started([command], tmp_path, variables) as (process,):
        lines = [process.stderr.readline() for _ in range(7)]
        assert lines[0].startswith("compiling all programs; ")
        assert re.fullmatch(r"a chunk of 16 tokens is ready after [\d.]+ s\n", lines[1])
        address, said = re.fullmatch(r"http://(.+)/v1 serves tiny: (.+)\n", lines[6]).groups()
        assert said.startswith("1 request at once of up to 400 tokens each; ")
        assert "of weights and" in said and "of cache are reserved" in said
        assert post(address, prompt=[1], n=2)[0] == 200
        results = []
        thread = asking(address, results)
        while b"requests_running 1" not in metrics(address):
            if not thread.is_alive():  # it may have ended unseen
                assert results[0][0] == 200
                thread = asking(address, results)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=300)
        thread.join(300)
    ((status, answer),) = results
    assert status == 200 and answer["usage"]["completion_tokens"] == 300
    assert (process.returncode, out, err) == (0, "", "")


def metrics(address: str) -> bytes:
    with contextlib.closing(http.client.HTTPConnection(address, timeout=300)) as connection:
        connection.request("GET", "/metrics", headers={"authorization": "Bearer key"})
        return connection.getresponse().read()


def test_what_cannot_be_served_is_refused_in_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        cases = {
            "a port that another has": ([f"--port={port}"], 1, f"address is 127.0.0.1:{port}"),
            "no host": (["--host=a.invalid"], 2, "host is 'a.invalid', which is no address"),
            "an empty key": (["--api_key="], 2, "--api_key is empty"),
            "no template": (["--chat_template=rag"], 2, "--chat_template is 'rag', but "),
            "a document": (["--json=a"], 2, "a server writes no document"),
            "too long": (["--context=513"], 2, "--context is 513"),
            "no draft": (["--draft_tokens=2"], 2, "--draft_tokens is given, but --draft is not"),
            "a small budget": (["--token_budget=15", "--port=0"], 2, "token_budget is 15"),
        }
        arguments = {name: [*TINY, *case[0]] for name, case in cases.items()}
        ended = run_many("serve.py", arguments, folder=tmp_path)
    for name, (_, code, words) in cases.items():
        assert (ended[name].code, ended[name].stdout) == (code, ""), name
        assert words in ended[name].error, name
