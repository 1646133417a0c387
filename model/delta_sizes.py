"""Sizes of gated delta layers (Yang et al. 2024, Gated Delta Networks)."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeltaSizes:
    """What a layer keeps of a sequence in place of keys and values, and what it is made by.

    Each key head has one query and one key, and so many values, each with a state of its own.
    Published names in brackets.

    Attributes:
      key_heads: heads of queries and keys (``linear_num_key_heads``).
      values_per_key: value heads that share a key head (``linear_num_value_heads`` over that).
      key_size: numbers of a query or key (``linear_key_head_dim``).
      value_size: numbers of a value (``linear_value_head_dim``).
      taps: tokens that the convolution before them sees, itself included
        (``linear_conv_kernel_dim``).
    """

    key_heads: int
    values_per_key: int
    key_size: int
    value_size: int
    taps: int = 4

    @property
    def value_heads(self) -> int:
        """Value heads of a layer, each of which has a state."""
        return self.key_heads * self.values_per_key

    @property
    def convolved(self) -> int:
        """Numbers of a key head that the convolution runs over: its query, key and values."""
        return 2 * self.key_size + self.values_per_key * self.value_size

    @property
    def projected(self) -> int:
        """Numbers of a key head that are made of a token: those and the gates of its values."""
        return self.convolved + self.values_per_key * self.value_size

    @property
    def lengths(self) -> dict[str, int]:
        """Length of each logical axis that these sizes fix."""
        return {
            "N": self.key_heads,
            "M": self.values_per_key,
            "b": self.key_heads,
            "d": self.values_per_key,
            "i": self.key_size,
            "o": self.value_size,
            "j": self.value_size,
            "w": self.projected,
            "m": self.convolved,
            "t": self.taps,
            "r": self.taps - 1,
        }

    @property
    def fault(self) -> str:
        """What is wrong with these sizes; empty if nothing is."""
        for name, value in dataclasses.asdict(self).items():
            least = 2 if name == "taps" else 1
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                return f"{name} is {value!r}; it must be an integer of {least} or more"
        return ""
