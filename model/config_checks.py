"""Model descriptions that contradict themselves are refused."""

from typing import TYPE_CHECKING

from sharding.error_types import UsageError

if TYPE_CHECKING:
    from model.config import ModelConfig

_CHOICES = {"norm": ("rms", "layer"), "activation": ("silu", "gelu_tanh", "clipped_silu")}
_POSITIVE = (
    "rotary_base",
    "local_rotary_base",
    "rotary_scale",
    "norm_epsilon",
    "embedding_scale",
    "attention_scale",
    "residual_scale",
    "logit_scale",
    "attention_softcap",
    "logit_softcap",
)

_NOT_OF_LATENTS = (
    "windows",
    "attention_softcap",
    "attention_bias",
    "output_bias",
    "output_gate",
    "attention_sinks",
    "query_key_norm",
    "unit_queries_keys",
    "query_growth",
    "value_norm",
    "keys_are_values",
)
"""Fields of attention whose keys and values are cached, which latent attention does not read."""


class ConfigError(UsageError):
    """A model description that contradicts itself or asks for something not supported."""


def check(config: "ModelConfig") -> None:
    """Refuses a description that contradicts itself.

    Raises:
      ConfigError: the field, its value, and what it must be.
    """
    _check_sizes(config)
    _check_parts(config)
    _check_numbers(config)
    _check_rotary(config)
    _check_windows(config)
    _check_experts(config)
    _check_latent(config)
    _check_delta(config)
    _check_heads_of_layers(config)
    _check_shared_caches(config)


def _check_sizes(config: "ModelConfig") -> None:
    sizes = "vocabulary d_model layers query_heads kv_heads head_size d_ff max_context"
    for field in sizes.split():
        value = getattr(config, field)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{field} of {config.name} is {value!r}; it must be an integer > 0")
    if config.query_heads % config.kv_heads:
        raise ConfigError(
            f"query_heads of {config.name} is {config.query_heads}, not a multiple of its "
            f"{config.kv_heads} kv_heads; every KV head serves the same number of query heads"
        )
    if config.head_size % 2:
        raise ConfigError(f"head_size of {config.name} is {config.head_size}; it must be even")
    for field, choices in _CHOICES.items():
        if getattr(config, field) not in choices:
            raise ConfigError(
                f"{field} of {config.name} is {getattr(config, field)!r}; use one of {choices}"
            )


def _check_latent(config: "ModelConfig") -> None:
    if config.latent and (fault := config.latent.fault(config.head_size, config.kv_heads)):
        raise ConfigError(f"latent attention of {config.name} cannot be: {fault}")
    for field in _NOT_OF_LATENTS if config.latent else ():
        if getattr(config, field):
            raise ConfigError(
                f"{field} of {config.name} is {getattr(config, field)!r:.40}; latent attention "
                "has none"
            )


def _check_delta(config: "ModelConfig") -> None:
    given, layers = config.delta_layers, config.layers
    if (given is None) != (config.delta is None) or (given and len(given) != layers):
        raise ConfigError(
            f"delta_layers of {config.name} is {given!r:.40}; give sizes of such layers "
            f"(delta), and one entry for each of {layers} layers"
        )
    if config.delta and (fault := config.delta.fault):
        raise ConfigError(f"delta layers of {config.name} cannot be: {fault}")
    if config.delta and config.latent:
        raise ConfigError(f"delta of {config.name} is set; latent attention has no such layers")


def _check_parts(config: "ModelConfig") -> None:
    """Refuses norms and biases that no block has together."""
    if config.parallel_block and config.norm_after:
        raise ConfigError(f"norm_after of {config.name} is True; a parallel block has none")
    if not config.norm_before and not config.norm_after:
        raise ConfigError(f"norm_before of {config.name} is False; it needs norm_after then")
    if config.norm_over_heads and not config.query_key_norm:
        raise ConfigError(f"norm_over_heads of {config.name} is True; it needs query_key_norm")
    if config.mlp_bias and config.experts:
        raise ConfigError(f"mlp_bias of {config.name} is True; its experts have none")


def _check_numbers(config: "ModelConfig") -> None:
    for field in _POSITIVE:
        value = getattr(config, field)
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"{field} of {config.name} is {value}; it must be positive")


def _check_rotary(config: "ModelConfig") -> None:
    size = config.rotary_size
    if size is not None and (size % 2 or not 0 < size <= config.head_size):
        raise ConfigError(
            f"rotary_size of {config.name} is {size}; it must be even, and 2 to its head_size "
            f"of {config.head_size}"
        )
    _check_by_layer(config, "rotary_layers")
    for field in ("rotary_factors", "long_rotary_factors"):
        factors = getattr(config, field)
        if factors is not None and (
            len(factors) != config.rotated // 2
            or not all(0 < factor < float("inf") for factor in factors)
        ):
            raise ConfigError(
                f"{field} of {config.name} has {len(factors)} values; "
                f"it needs {config.rotated // 2} positive ones, one per rotary frequency"
            )
    beyond = config.rotary_limit is not None and config.max_context > config.rotary_limit
    if beyond and not config.long_rotary_factors:
        raise ConfigError(
            f"max_context of {config.name} is {config.max_context}, beyond what its dynamic rotary "
            f"scaling stays the same for; use at most {config.rotary_limit}"
        )


def _check_windows(config: "ModelConfig") -> None:
    growth = config.query_growth
    if growth is not None and not (len(growth) == 2 and growth[0] >= 1 and growth[1] >= 0):
        raise ConfigError(
            f"query_growth of {config.name} is {growth}; give a length from 1 on and a slope"
        )
    if config.windows is None:
        return
    _check_by_layer(config, "windows")
    if not all(window is None or window > 0 for window in config.windows):
        raise ConfigError(f"windows of {config.name} is {config.windows}; use integers > 0 or None")


def _check_dense_layers(config: "ModelConfig") -> None:
    """Refuses layers without experts that do not go with their width, or with each other."""
    _check_by_layer(config, "expert_layers")
    chosen = config.expert_layers
    if chosen is not None and (config.dense_layers or not config.experts):
        raise ConfigError(
            f"expert_layers of {config.name} is given, and dense_layers is {config.dense_layers} "
            f"of {config.experts} experts; give one of both, to a model with experts"
        )
    dense = config.dense_layers if chosen is None else chosen.count(False)
    most = config.layers - 1 if config.experts else 0
    if not 0 <= dense <= most or bool(dense) != (config.dense_d_ff > 0):
        raise ConfigError(
            f"dense_layers of {config.name} is {dense} and dense_d_ff {config.dense_d_ff}; give "
            f"both or neither, and at most {most} layers"
        )


def _check_by_layer(config: "ModelConfig", field: str) -> None:
    """Refuses a field that has another number of entries than there are layers."""
    entries = getattr(config, field)
    if entries is not None and len(entries) != config.layers:
        raise ConfigError(
            f"{field} of {config.name} has {len(entries)} entries; it needs one for each of "
            f"{config.layers} layers"
        )


def _check_experts(config: "ModelConfig") -> None:
    if config.expert_bias and not config.experts:
        raise ConfigError(f"expert_bias of {config.name} is True; only experts have one")
    minimum = 1 if config.experts else 0
    if config.experts < 0 or not minimum <= config.experts_per_token <= config.experts:
        raise ConfigError(
            f"experts_per_token of {config.name} is {config.experts_per_token}; it must be "
            f"{minimum} to its {config.experts} experts"
        )
    if config.expert_bias and config.routing.of_inputs:
        raise ConfigError(f"expert_bias of {config.name} is True, where shares are of inputs")
    if config.experts and (fault := config.routing.fault(config.experts, config.experts_per_token)):
        raise ConfigError(f"routing of {config.name} cannot be: {fault}; give another rule")
    _check_dense_layers(config)
    if config.shared_d_ff < 0 or (config.shared_d_ff and not config.experts):
        raise ConfigError(
            f"shared_d_ff of {config.name} is {config.shared_d_ff}; only experts have MLPs beside "
            "them, of a positive width"
        )
    if config.shared_gate and not config.shared_d_ff:
        raise ConfigError(f"shared_gate of {config.name} is True; it needs shared_d_ff")
    before = config.norm_before and not config.parallel_block
    if config.experts_apart and not (config.shared_d_ff and before):
        raise ConfigError(
            f"experts_apart of {config.name} is True; it needs shared_d_ff, and norms before an "
            "MLP that comes after attention"
        )


def _check_heads_of_layers(config: "ModelConfig") -> None:
    """Refuses layers without a window whose attention has sizes or parts that cannot be."""
    if not config.full_attention:
        return
    if fault := config.full_attention.fault(config.query_heads, config.windows):
        raise ConfigError(f"full_attention of {config.name} cannot be: {fault}")
    for field in ("latent", "norm_over_heads", "attention_sinks", "rotary_factors", "rotary_size"):
        if getattr(config, field):
            raise ConfigError(
                f"{field} of {config.name} is {getattr(config, field)!r:.40}; a model whose layers "
                "have heads of two sizes has none"
            )


def _check_shared_caches(config: "ModelConfig") -> None:
    """Refuses layers without keys and values of their own where there are none to read."""
    last = config.shared_cache_layers
    if not last:
        if config.shared_cache_d_ff:
            raise ConfigError(
                f"shared_cache_d_ff of {config.name} is {config.shared_cache_d_ff}; it needs "
                "shared_cache_layers"
            )
        return
    others = config.latent or config.experts or config.delta
    if not 0 < last < config.layers or others:
        raise ConfigError(
            f"shared_cache_layers of {config.name} is {last}; it must be 0 to {config.layers - 1}, "
            "in a model without experts, latent attention and delta layers"
        )
    for layer in range(config.layers - last, config.layers):
        if config.cache_layer(layer) == layer:
            raise ConfigError(
                f"shared_cache_layers of {config.name} is {last}; no layer before them has keys "
                f"and values for layer {layer} and a window like its own"
            )
