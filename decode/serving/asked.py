"""What a client asks for: the fields of a body, checked, as requests of the batching engine."""

import dataclasses
import secrets
from typing import Any

from decode.batching.request import LONGEST_STOP, MOST_STOPS, Request
from decode.sampling import SamplingError
from decode.serving.errors import ApiError, shown
from decode.serving.fields import Fields
from decode.serving.messages import read_messages
from decode.tokenizer import Tokenizer, TokenizerError
from model.config import ModelConfig
from sharding.error_types import FloorlineError

USUAL_TOKENS = 16
"""Tokens of a completion that gives no limit, as OpenAI's interface has it."""


_DROPPED = 4
"""A text may have so many times the bytes of its tokens: normalizers drop some, as spaces."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Served:
    """The model of a server, and what a request may ask of it.

    Attributes:
      name: of the model, as clients name it.
      config: its sizes.
      tokenizer: reads prompts and writes answers; None: prompts are token ids, and so are answers.
      context: tokens of a prompt and its answer together, at most.
      top_logprobs: alternatives to each token that are told, at most.
      answers: answers that one request may ask for, over all its prompts.
      created: when the server started, in seconds since 1970.
    """

    name: str
    config: ModelConfig
    tokenizer: Tokenizer | None
    context: int
    top_logprobs: int
    answers: int
    created: int

    def text(self, token: int) -> str:
        """The text of a token alone; what is no whole character becomes U+FFFD."""
        return self.tokenizer.decode([token]) if self.tokenizer else f"{token} "

    def token_name(self, token: int) -> str:
        """A token's text; where that is none or no whole characters, a name of its own."""
        return self.tokenizer.name(token) if self.tokenizer else f"{token} "

    def bytes(self, token: int) -> list[int]:
        """The bytes that a token adds to a text."""
        return list(self.tokenizer.piece(token) if self.tokenizer else f"{token} ".encode())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """One HTTP request, understood.

    Attributes:
      chat: whether messages were given, and not prompts.
      requests: for each prompt its answers, one after another.
      each: answers to each prompt.
      stream: whether tokens are told as they come.
      usage: whether a stream ends with the number of tokens.
      logprobs: whether log probabilities are told.
      token_ids: whether ids of tokens are told.
    """

    chat: bool
    requests: tuple[Request, ...]
    each: int
    stream: bool
    usage: bool
    logprobs: bool
    token_ids: bool


def read_completion(body: dict[str, Any], served: Served) -> Asked:
    """The body of ``/v1/completions``.

    Raises:
      ApiError: it cannot be answered.
    """
    fields = Fields(body)
    _check_model(fields, served)
    if body.get("prompt") is None and "messages" in body:
        fields.refuse("messages", body["messages"], "send messages to /v1/chat/completions")
    prompts = _prompts(fields.take("prompt"), served)
    limit = fields.integer("max_tokens", None, 1)
    told = fields.take("logprobs")
    if told is not None and (type(told) is not int or not 0 <= told <= served.top_logprobs):
        fields.refuse("logprobs", told, f"give an integer from 0 to {served.top_logprobs}")
    best_of, each = fields.integer("best_of", None, 1), fields.integer("n", 1, 1)
    if best_of not in (None, each):
        fields.refuse("best_of", best_of, f"give that of n, {each}, or leave it out")
    lengths = [len(prompt) for prompt in prompts]
    limits = [limit or min(USUAL_TOKENS, max(served.context - n, 1)) for n in lengths]
    asked = {"top_logprobs": told or 0, "logprobs": told is not None, "each": each}
    return _asked(fields, served, prompts, limits, "prompt", **asked)


def read_chat(body: dict[str, Any], served: Served) -> Asked:
    """The body of ``/v1/chat/completions``.

    Raises:
      ApiError: it cannot be answered.
    """
    fields = Fields(body)
    _check_model(fields, served)
    if body.get("messages") is None and "prompt" in body:
        fields.refuse("prompt", body["prompt"], "send a prompt to /v1/completions")
    prompt = _chat_prompt(fields.take("messages"), served)
    older = fields.integer("max_tokens", None, 1)
    limit = fields.integer("max_completion_tokens", older, 1)
    told = fields.flag("logprobs")
    top = fields.integer("top_logprobs", None, 0, served.top_logprobs)
    if top is not None and not told:
        fields.refuse("top_logprobs", top, "give logprobs true with it")
    limits = [limit or max(served.context - len(prompt), 1)]
    asked = {"top_logprobs": top or 0, "logprobs": told, "each": fields.integer("n", 1, 1)}
    return _asked(fields, served, [prompt], limits, "messages", **asked)


def _asked(
    fields: Fields,
    served: Served,
    prompts: list[list[int]],
    limits: list[int],
    param: str,
    *,
    top_logprobs: int,
    logprobs: bool,
    each: int,
) -> Asked:
    """The rest, which both kinds of bodies have."""
    if len(prompts) * each > served.answers:
        fields.refuse("n", each, f"{served.answers} answers to all prompts together are the most")
    for prompt, limit in zip(prompts, limits, strict=True):
        _check_length(len(prompt), limit, served, param)
    common = _sampling(fields) | _stops(fields, served) | {"top_logprobs": top_logprobs}
    _check_min_tokens(fields, common, min(limits))
    stream = fields.flag("stream")
    usage = _stream_options(fields, stream)
    token_ids = fields.flag("return_token_ids")
    fields.end()
    requests = [
        Request(prompt=tuple(prompt), max_new_tokens=limit, sequence=n * each + k, **common)
        for n, (prompt, limit) in enumerate(zip(prompts, limits, strict=True))
        for k in range(each)
    ]
    try:
        for request in requests[::each]:
            tokenizer = served.tokenizer is not None
            request.check(served.config, served.context, served.top_logprobs, tokenizer)
    except FloorlineError as error:
        of_prompt = not isinstance(error, SamplingError)
        raise ApiError(str(error), param=param if of_prompt else None) from None
    return Asked(
        chat=param == "messages",
        requests=tuple(requests),
        each=each,
        stream=stream,
        usage=usage,
        logprobs=logprobs,
        token_ids=token_ids,
    )


def unknown_model(name: str, served: Served) -> ApiError:
    """What a client is told that names another model."""
    return ApiError(
        f"model is {shown(name)}, which is not served; use {shown(served.name)}",
        param="model",
        code="model_not_found",
        status=404,
    )


def _check_model(fields: Fields, served: Served) -> None:
    name = fields.text("model", served.name)
    if name != served.name:
        raise unknown_model(name, served)


def _prompts(given: Any, served: Served) -> list[list[int]]:
    """Token ids of each prompt: a text, several, token ids of one, or of several."""
    several = isinstance(given, list) and given and not _is_ids(given)
    prompts = given if several else [given]
    if len(prompts) > served.answers:
        raise ApiError(
            f"number of prompts is {len(prompts)}; give at most {served.answers}", param="prompt"
        )
    for prompt in prompts:
        if not (prompt and (isinstance(prompt, str) or _is_ids(prompt))):
            raise ApiError(
                f"prompt is {shown(prompt)}; give text or a list of token ids, or several of them",
                param="prompt",
            )
    return [_encoded(p, served) if isinstance(p, str) else p for p in prompts]


def _is_ids(given: Any) -> bool:
    return isinstance(given, list) and all(type(each) is int for each in given)


def _encoded(prompt: str, served: Served) -> list[int]:
    if served.tokenizer is None:
        raise ApiError(
            f"prompt is text, but {served.name} has no tokenizer; give token ids", param="prompt"
        )
    _check_bytes(prompt, served, "prompt")
    try:
        return served.tokenizer.encode(prompt)
    except TokenizerError as error:
        raise ApiError(str(error), param="prompt") from None


def _chat_prompt(messages: Any, served: Served) -> list[int]:
    """Token ids of messages in the model's chat template."""
    read = read_messages(messages)
    if served.tokenizer is None:
        raise ApiError(
            f"messages are given, but {served.name} has no tokenizer; "
            "give token ids to /v1/completions",
            param="messages",
        )
    try:
        text = served.tokenizer.chat(read)
        _check_bytes(text, served, "messages")
        return served.tokenizer.encode(text, special=True)
    except TokenizerError as error:
        raise ApiError(str(error), param="messages") from None


def _check_bytes(text: str, served: Served, param: str) -> None:
    """Refuses a text that is far too long for `context` before any time is spent on it."""
    size, most = len(text.encode(errors="replace")), served.context * served.tokenizer.longest
    if size > _DROPPED * most:
        raise ApiError(
            f"{param} is {size} bytes of text, but there is room for {served.context} tokens; "
            "shorten it",
            param=param,
            code="context_length_exceeded",
        )


def _check_length(length: int, limit: int, served: Served, param: str) -> None:
    if length + limit > served.context:
        raise ApiError(
            f"prompt is {length} token{'s' * (length != 1)} and its answer up to {limit}, but "
            f"there is room for {served.context} tokens; shorten one of them",
            param=param,
            code="context_length_exceeded",
        )


def _sampling(fields: Fields) -> dict[str, Any]:
    """Sampling values; filters that keep all tokens, or stand beside temperature 0, are none."""
    temperature = fields.number("temperature", 1.0, 0, 2)
    if 0 < temperature < 1e-6:
        fields.refuse("temperature", temperature, "give 0, or a number from 1e-06 to 2")
    filters = {
        "top_k": fields.integer("top_k", None, -1),
        "top_p": fields.number("top_p", None, 0, 1),
        "min_p": fields.number("min_p", None, 0, 1),
    }
    if filters["top_p"] == 0:
        fields.refuse("top_p", 0, "give a number above 0 and at most 1")
    keep_all = {"top_k": (-1, 0), "top_p": (1,), "min_p": (0,)}
    kept = {
        name: value
        for name, value in filters.items()
        if temperature and value is not None and value not in keep_all[name]
    }
    seed = fields.integer("seed", None, -(2**63), 2**63 - 1)  # draws take the last 32 bits
    seed = secrets.randbits(32) if seed is None else seed
    return {"temperature": temperature, "seed": seed, **kept}


def _stops(fields: Fields, served: Served) -> dict[str, Any]:
    """What ends an answer before its limit."""
    stop = fields.take("stop", [])
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(each, str) for each in stops):
        fields.refuse("stop", stop, "give text, or a list of texts")
    if len(stops) > MOST_STOPS:
        fields.refuse("stop", stop, f"{len(stops)} stop strings are too many: {MOST_STOPS} at most")
    for each in stops:
        if not 0 < len(each) <= LONGEST_STOP:
            said = f"a stop string of {len(each)} characters: 1 to {LONGEST_STOP} are allowed"
            fields.refuse("stop", each, said)
    if stops and served.tokenizer is None:
        fields.refuse("stop", stop, f"{served.name} has no tokenizer: give stop_token_ids")
    ids = fields.take("stop_token_ids", [])
    last = served.config.vocabulary - 1
    if not _is_ids(ids) or not all(0 <= each <= last for each in ids):
        fields.refuse("stop_token_ids", ids, f"give a list of token ids from 0 to {last}")
    endless = fields.flag("ignore_eos") or served.tokenizer is None
    own = () if endless else served.tokenizer.stop_ids
    return {"stop": tuple(stops), "stop_ids": frozenset((*own, *ids))}


def _check_min_tokens(fields: Fields, stops: dict[str, Any], limit: int) -> None:
    """Takes a least number of tokens only where nothing ends an answer before its limit."""
    least = fields.integer("min_tokens", 0, 0)
    if least > limit:
        fields.refuse("min_tokens", least, f"give at most that of max_tokens, {limit}")
    if least and (stops["stop"] or stops["stop_ids"]):
        fields.refuse("min_tokens", least, "give ignore_eos true and no stop with it")


def _stream_options(fields: Fields, stream: bool) -> bool:
    given = fields.take("stream_options")
    if given is None:
        return False
    if not stream or not isinstance(given, dict):
        fields.refuse("stream_options", given, "give an object, with stream true")
    options = Fields(given, "stream_options")
    usage = options.flag("include_usage")
    options.take("include_obfuscation")  # pads chunks against those who watch their lengths
    options.end()
    return usage
