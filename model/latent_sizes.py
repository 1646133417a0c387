"""Sizes of latent attention (DeepSeek-AI 2024, DeepSeek-V2, section 2.1)."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentSizes:
    """What a cached token is compressed to, and how queries and keys are made of two parts.

    The content of a query and a key comes from the latent and knows no position; beside it each has
    a rotary part, that of a key being the same for all heads. Published names in brackets.

    Attributes:
      rank: numbers of the latent that keys and values are made of (``kv_lora_rank``).
      rotary: size of the rotary part of queries and keys (``qk_rope_head_dim``).
      content: size of their content (``qk_nope_head_dim``).
      value: size of a head's value (``v_head_dim``).
      query_rank: numbers of the latent that queries are made of (``q_lora_rank``); None where they
        are made of the residual stream itself.
    """

    rank: int
    rotary: int
    content: int
    value: int
    query_rank: int | None = None

    @property
    def cached(self) -> int:
        """Numbers that the cache holds of a token in each layer: the latent and the rotary key."""
        return self.rank + self.rotary

    @property
    def lengths(self) -> dict[str, int]:
        """Length of each logical axis that these sizes fix."""
        found = {"l": self.cached, "c": self.rank, "u": self.content, "v": self.value}
        return found | ({"q": self.query_rank} if self.query_rank else {})

    def fault(self, head_size: int, kv_heads: int) -> str:
        """What is wrong with these sizes in a model of such heads; empty if nothing is."""
        given = dataclasses.asdict(self)
        if self.query_rank is None:
            del given["query_rank"]
        for name, value in given.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                return f"{name} is {value!r}; it must be an integer > 0"
        if self.rotary % 2:
            return f"rotary is {self.rotary}; it must be even"
        if self.content + self.rotary != head_size:
            return f"content and rotary are {self.content} and {self.rotary}; they make head_size"
        if kv_heads != 1:
            return f"kv_heads is {kv_heads}; latent attention caches one head for all"
        return ""
