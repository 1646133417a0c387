"""A model's shapes as the configuration of a Llama in transformers, for random weights."""

import dataclasses

from model.config import ModelConfig


def llama_fields(config: ModelConfig) -> dict | None:
    """The fields of `transformers.LlamaConfig` for these shapes; None for another kind of model.

    Scaling of rotary frequencies is left out: it changes neither shapes nor times.
    """
    names = "name vocabulary d_model layers query_heads kv_heads head_size d_ff max_context"
    kept = {name: getattr(config, name) for name in names.split()}
    kept |= {name: getattr(config, name) for name in ("rotary_base", "norm_epsilon")}
    plain = ModelConfig(**kept, tied_embedding=config.tied_embedding)
    if plain != dataclasses.replace(config, rotary_factors=None):
        return None
    return {
        "vocab_size": config.vocabulary,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.query_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.d_ff,
        "hidden_act": config.activation,
        "max_position_embeddings": config.max_context,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tied_embedding,
    }
