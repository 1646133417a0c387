"""What a server answers where it does not do what is asked, in the form of OpenAI's interface."""

import json
from typing import Any

_TYPES = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}


class ApiError(Exception):
    """A refusal or a failure, as clients are told of it.

    Args:
      message: WHAT is VALUE; REMEDY.
      param: the field of the request that is meant, if one is.
      code: a word for programs.
      status: of HTTP.
      retry_after: seconds after which to ask again; None where that is in vain.
      closes: whether the connection is closed with it.
    """

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
        retry_after: int | None = None,
        closes: bool = False,
    ):
        super().__init__(message)
        self.param, self.code = param, code
        self.status, self.retry_after, self.closes = status, retry_after, closes

    @property
    def body(self) -> dict[str, Any]:
        """The answer's body."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        said = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": said}

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer beside those that every answer has."""
        headers = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        headers |= {"connection": "close"} if self.closes else {}
        return headers | ({"www-authenticate": "Bearer"} if self.status == 401 else {})


def shown(value: object) -> str:
    """A value of a request as it stands in a message: in JSON, at most 40 characters."""
    if value is None:
        return "missing"
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        text = "nested too deep"
    return text if len(text) <= 40 else f"{text[:37]}..."
