"""How well a model predicts a text: what storing it in fewer bits costs, in one number."""

import numpy as np

from decode.engine import Engine


def perplexity(engine: Engine, tokens: np.ndarray, cached: bool = False) -> float:
    """The exponential of the mean negative log likelihood of each token after the first.

    Args:
      engine: the model.
      tokens: [B, T] int32, texts of one length.
      cached: predict step by step from the KV cache, as generation does, with keys and values as
        the cache stores them; otherwise in one pass, with keys and values as computed.
    """
    logits = _cached(engine, tokens) if cached else np.asarray(engine.forward(tokens))
    scores = logits[:, :-1].astype(np.float64)  # [B, T - 1, V]
    highest = scores.max(axis=-1, keepdims=True)
    total = highest[..., 0] + np.log(np.exp(scores - highest).sum(axis=-1))
    chosen = np.take_along_axis(scores, tokens[:, 1:, None], axis=-1)[..., 0]
    return float(np.exp(np.mean(total - chosen)))


def _cached(engine: Engine, tokens: np.ndarray) -> np.ndarray:
    """Logits of decode steps fed these tokens, [B, T, V]."""
    batch, length = tokens.shape
    lengths = np.ones(batch, np.int32)
    logits, cache = engine.prefill(engine.new_cache(batch, length), tokens[:, :1], lengths)
    outputs = [np.asarray(logits)]
    for step in range(1, length):
        next_token, seen = engine.put(tokens[:, step]), engine.put(lengths * step)
        logits, cache = engine.decode_step(cache, next_token, seen)
        outputs.append(np.asarray(logits))
    return np.stack(outputs, axis=1)
