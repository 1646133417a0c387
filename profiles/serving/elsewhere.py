"""Loads answered by a server elsewhere, over OpenAI's streaming completions.

Times are those that a client sees. Each request has a thread and a connection of its own. Prompts
are token ids, so that their lengths are as asked, and answers go on behind tokens that end a text
(`ignore_eos`).
"""

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import numpy as np

from profiles.serving.arrivals import Asked, Load
from profiles.serving.traffic import Timeline, Traffic
from sharding.error_types import FloorlineError, UsageError

KNOWN = 256, 1000
"""Token ids from the one to below the other are letters and words in any vocabulary."""
TIMEOUT_S = 600.0


class Server:
    """A server that answers as OpenAI's does.

    Args:
      url: where it is, such as ``http://127.0.0.1:8000``, with or without ``/v1``.
      model: its name of the model; None for the first that it lists.
      api_key: sent with each request, if it is given.

    Raises:
      UsageError: an address that is none.
      FloorlineError: nothing answers there as such a server does.
    """

    def __init__(self, url: str, model: str | None = None, api_key: str | None = None):
        parts = urlsplit(url)
        try:
            good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            good = False
        if not good:
            raise UsageError(f"url is {url!r}; use an address such as http://127.0.0.1:8000")
        self.url, self._host, self._port = url, parts.hostname, parts.port
        self._path = parts.path.rstrip("/").removesuffix("/v1") + "/v1"
        self._kind = http.client.HTTPConnection
        if parts.scheme == "https":
            self._kind = http.client.HTTPSConnection
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self.model = model or self._first_model()

    def stream(self, prompt: list[int], new_tokens: int) -> Iterator[int]:
        """Answers a prompt; yields how many more tokens are there as they come.

        Each event with text counts as one token until the server tells how many there were.

        Raises:
          FloorlineError: the server refuses, breaks off or makes another number of tokens.
        """
        asked = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": new_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        told, made = 0, new_tokens
        for event in self._events(asked):
            if any(_brings_token(choice) for choice in event.get("choices", ())):
                told += 1
                yield 1
            if event.get("usage"):
                made = event["usage"]["completion_tokens"]
        if made != new_tokens or not told:
            raise FloorlineError(
                f"tokens from {self.url} is {min(made, told)}, not {new_tokens}; its answers must "
                "heed ignore_eos"
            )
        if made != told:
            yield made - told

    def _events(self, asked: dict) -> Iterator[dict]:
        """Objects of the stream of one request."""
        connection = self._kind(self._host, self._port, timeout=TIMEOUT_S)
        try:
            body = json.dumps(asked)
            connection.request("POST", f"{self._path}/completions", body, self._headers)
            answer = connection.getresponse()
            if answer.status != 200:
                raise FloorlineError(self._refusal(answer.status, answer.read()))
            for line in answer:
                field, _, data = line.decode().strip().partition(":")
                if field == "data" and data.strip() != "[DONE]":
                    event = json.loads(data)
                    if "error" in event:
                        raise FloorlineError(self._refusal(answer.status, data.encode()))
                    yield event
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise FloorlineError(f"answer of {self.url} is broken off ({error!r})") from error
        finally:
            connection.close()

    def _first_model(self) -> str:
        connection = self._kind(self._host, self._port, timeout=30)
        try:
            connection.request("GET", f"{self._path}/models", headers=self._headers)
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200:
                raise FloorlineError(self._refusal(answer.status, body))
            return json.loads(body)["data"][0]["id"]
        except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
            why = f"{type(error).__name__}: {error}"
            raise FloorlineError(
                f"server at {self.url} is not answering ({why}); start it, or name another --url"
            ) from error
        finally:
            connection.close()

    def _refusal(self, status: int, body: bytes) -> str:
        text = " ".join(body.decode(errors="replace").split())[:200]
        return f"answer of {self.url} is status {status} ({text})"


def _brings_token(choice: dict) -> bool:
    """Whether a part of an answer has a token, and is not the end alone."""
    return bool(choice.get("text")) or choice.get("finish_reason") is None


def answer(
    server: Server, load: Load, seed: int = 0, done: Callable[[int], None] = lambda count: None
) -> Traffic:
    """Answers a load, with a thread for each request in flight.

    Raises:
      FloorlineError: a request failed; those that have not come by then are not asked, and others
        end with their next token.
    """
    random = np.random.default_rng(seed)
    prompts = [random.integers(*KNOWN, each.prompt_length).tolist() for each in load.asked]
    timelines: list[Timeline] = [Timeline(0.0, each.prompt_length) for each in load.asked]
    ended, lock, over = [0], threading.Lock(), threading.Event()
    begun = time.perf_counter()

    def ask(number: int, asked: Asked) -> None:
        timeline = timelines[number]
        timeline.arrived = time.perf_counter() - begun
        if asked.arrival_s is not None:
            over.wait(max(asked.arrival_s - timeline.arrived, 0))
            timeline.arrived = asked.arrival_s
        if over.is_set():
            return
        for count in server.stream(prompts[number], asked.generated_tokens):
            timeline.token(time.perf_counter() - begun, count)
            if over.is_set():
                return
        with lock:
            ended[0] += 1
            done(ended[0])

    with ThreadPoolExecutor(load.concurrency or len(load.asked)) as pool:
        asking = [pool.submit(ask, number, each) for number, each in enumerate(load.asked)]
        try:
            futures.wait(asking, return_when=futures.FIRST_EXCEPTION)
        finally:
            over.set()
            pool.shutdown(wait=False, cancel_futures=True)
    for each in asking:
        if not each.cancelled():
            each.result()
    return Traffic(load, timelines, max(each.last for each in timelines))
