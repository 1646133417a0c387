"""Parameters of a Hugging Face model directory: the stored tensors that each array is made of.

Every array of the model is assembled from pieces, so that a chip's shard reads only the rows
it holds. Names: the `modeling_*.py` of each family in https://github.com/huggingface/transformers.
"""

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import jax
import ml_dtypes
import numpy as np

from model.config import ModelConfig
from model.declarations import Path as ParameterPath
from model.parameters import Readable
from model.weights import WeightsError
from model.weights import huggingface_delta as delta
from model.weights import huggingface_gemma4 as gemma4
from model.weights.assembled import HEAD, Assembled, Piece, Shape
from model.weights.family_record import Family
from model.weights.fp8_files import FP8, PLAIN_DTYPES, Fp8Files, open_files
from model.weights.fp8_kept import as_stored, stored_form
from model.weights.huggingface_config import read_config
from model.weights.huggingface_deepseek import attention_arrays, prediction_layers
from model.weights.huggingface_families import FAMILIES
from model.weights.quantized_names import NOT_READ, quantized
from model.weights.safetensors_files import SafetensorsFiles
from model.weights.stacked_experts import BLOCKS, SCALES, StackedExperts
from sharding.quantization import QUANTIZATIONS, Quantization, QuantizedArray

_EMBEDDING = "embed_tokens.weight"
_UNEMBEDDING = "lm_head.weight"


class HuggingFaceFolder:
    """A directory with `config.json` and safetensors; the constructor reads and checks the headers.

    Attributes:
      config: the model.
      path: the directory.

    Raises:
      WeightsError: a file that is missing, damaged or asks for something not supported.
      ConfigError: sizes that contradict each other.
    """

    def __init__(self, path: Path):
        self.path = path
        self.config, self._model_type = read_config(path)
        self._files = open_files(path)
        read_parameters(self._files, self.config, self._model_type)

    @property
    def dtype(self) -> str:
        """bfloat16 if every plain matrix is stored in it, or in fp8; else float32."""
        if isinstance(self._files, Fp8Files):
            return "bfloat16"
        stored = {t.dtype for t in self._files.tensors.values() if len(t.shape) > 1}
        plain = stored - {np.dtype(np.uint8)}  # of which codes are
        return "bfloat16" if plain == {np.dtype(ml_dtypes.bfloat16)} else "float32"

    @property
    def quantization(self) -> Quantization | None:
        """How matrices are stored, all or those of experts; None where all are plain.

        It is None too for matrices in fp8 whose scales this project has no form for.
        """
        if isinstance(self._files, Fp8Files):
            return stored_form(self._files)
        codes = any(name.endswith(BLOCKS) for name in self._files.tensors)
        return QUANTIZATIONS["mxfp4"] if codes else None

    def read_parameters(
        self, config: ModelConfig, keep: Collection[ParameterPath] = ()
    ) -> Iterable[tuple[ParameterPath, Readable | QuantizedArray]]:
        """Every parameter with its path; indexing one reads that part of it.

        Args:
          config: as the constructor read it.
          keep: paths of matrices that are wanted as `quantization` says, and stay as they are
            where they are stored so.
        """
        return read_parameters(self._files, config, self._model_type, keep).items()


def read_parameters(
    files: SafetensorsFiles | Fp8Files,
    config: ModelConfig,
    model_type: str,
    keep: Collection[ParameterPath] = (),
) -> dict[ParameterPath, Readable | QuantizedArray]:
    """The model's parameters, which are read when they are indexed.

    Args:
      files: the directory's tensors.
      config: the configuration that its `config.json` gives.
      model_type: the family, as `config.json` names it.
      keep: paths of matrices that stay in MXFP4 or fp8 where they are stored in it.

    Raises:
      WeightsError: tensors that are missing, left over, misshapen or quantized.
    """
    family = FAMILIES[model_type]
    joined = family.names.stacked or any(n.endswith(".experts.gate_up_proj") for n in files.tensors)
    experts = 1 if joined else max(config.experts, 1)
    routed = config.layers_of_experts
    if routed * experts + config.layers - routed > len(files.tensors):
        raise WeightsError(
            f"config.json has {config.layers} layers but there are {len(files.tensors)} tensors; "
            "check that config.json belongs to these weights"
        )
    if what := quantized(files.tensors, files.beside):
        raise WeightsError(f"{what}; quantized weights {NOT_READ}")
    arrays = _Arrays(files, config, family, frozenset(keep))
    parameters = arrays.all()
    form = stored_form(files) if isinstance(files, Fp8Files) else None
    parameters |= {path: as_stored(parameters[path], form) for path in keep if form}
    readable = jax.tree.leaves(parameters)  # of a matrix in few bits, its parts
    wanted = {name: shape for array in readable for name, shape in array.tensors.items()}
    further = prediction_layers(files.tensors) if family.topk_method else ()
    left_out = (*further, *family.other_parts)
    of_gemma4 = family.kinds_of_heads
    unused = gemma4.left_out(files.tensors, arrays.prefix, config) if of_gemma4 else ()
    spare = [
        n
        for n in files.tensors
        if n not in wanted and not n.startswith(left_out) and n not in unused
    ]
    _check_wanted(files, wanted, spare)
    if config.tied_embedding and arrays.unembedding in spare:
        _check_tied(files, arrays.unembedding, arrays.embedding)
        spare.remove(arrays.unembedding)
    if spare:
        raise WeightsError(
            f"tensor {spare[0]} is one of {len(spare)} that the configuration has no use for; "
            "check that config.json belongs to these weights"
        )
    return parameters


def _check_wanted(
    files: SafetensorsFiles | Fp8Files, wanted: Mapping[str, Shape], spare: list[str]
) -> None:
    """Refuses files in which a tensor is missing or has another shape or dtype than the model's.

    Args:
      files: the directory's tensors.
      wanted: the shapes of all tensors that the model needs, by name.
      spare: names of tensors that the model does not need.
    """
    for name, shape in wanted.items():
        if name not in files.tensors:
            remedy = "; fetch the model again"
            if name.endswith(_UNEMBEDDING):
                remedy = (
                    ", as where the base model was saved alone; give the whole model, or set "
                    "tie_word_embeddings to true if the embedding serves for both"
                )
            elif spare:
                remedy = (
                    f", where {spare[0]:.100} is one of {len(spare)} that the configuration has "
                    "no use for; check that config.json belongs to these weights"
                )
            raise WeightsError(f"tensor {name} is missing{remedy}")
        if files.tensors[name].shape != shape:
            raise WeightsError(
                f"tensor {name} has shape {files.tensors[name].shape}, not {shape} as config.json "
                "says; fetch the model again"
            )
        codes, dtype = name.endswith((BLOCKS, SCALES)), files.tensors[name].dtype
        if dtype == FP8 and not codes:
            raise WeightsError(
                f"tensor {name} is in fp8 without its scales, {name}_scale_inv; fetch the model "
                "again, or give it in BF16, F16 or F32"
            )
        if dtype not in ([np.dtype(np.uint8)] if codes else PLAIN_DTYPES):
            raise WeightsError(f"tensor {name} is stored as {dtype}; quantized weights {NOT_READ}")


def _check_tied(files: SafetensorsFiles | Fp8Files, unembedding: str, embedding: str) -> None:
    if not np.array_equal(files.read(unembedding), files.read(embedding)):
        raise WeightsError(
            f"tensor {unembedding} differs from the embedding though config.json ties them; "
            "set tie_word_embeddings to false"
        )


def _stored_name(tensors: Iterable[str], name: str, default: str) -> str:
    """The full name of the one tensor whose name ends with `name`; else `default`."""
    matches = [stored for stored in tensors if f".{stored}".endswith(f".{name}")]
    return matches[0] if len(matches) == 1 else default


def _half_split(rotated: int, head_size: int) -> tuple[int, ...]:
    """Places of a head's rows in a file in which the two of each rotary pair are adjacent."""
    return (*range(0, rotated, 2), *range(1, rotated, 2), *range(rotated, head_size))


class _Arrays:
    """Every array of one model, by its path.

    The base model may be saved alone or inside another module, so the names of its tensors have a
    prefix of any length. The embedding's name tells that prefix, which all others share.

    Attributes:
      embedding, unembedding: their names in the files.
      prefix: what the names of the base model's tensors begin with.
      of_gemma4: attention and blocks have the tensors of `model.weights.huggingface_gemma4`.
    """

    def __init__(
        self,
        files: SafetensorsFiles | Fp8Files,
        config: ModelConfig,
        family: Family,
        keep: frozenset[ParameterPath],
    ):
        self.files, self.config, self.keep = files, config, keep
        self.names, self.of_gemma4 = family.names, family.kinds_of_heads
        self.embedding = _stored_name(files.tensors, _EMBEDDING, f"model.{_EMBEDDING}")
        self.unembedding = _stored_name(files.tensors, _UNEMBEDDING, _UNEMBEDDING)
        self.prefix = self.embedding.removesuffix(_EMBEDDING)

    def all(self) -> dict[ParameterPath, Readable | QuantizedArray]:
        c = self.config
        table = (c.vocabulary, c.d_model)
        found = {("embedding", "weight"): self.one(f"{self.prefix}embed_tokens", table)}
        for layer in range(c.layers):
            prefix = f"{self.prefix}layers.{layer}."
            if c.is_delta(layer):
                joined = self.names.delta == "joined"
                parts = delta.layer_arrays(self, c, prefix + "linear_attn.", joined)
            else:
                parts = self.attention(layer, prefix + "self_attn.")
            parts |= self.norms(prefix)
            parts |= self.feed_forward(layer, prefix)
            if self.of_gemma4:
                parts |= gemma4.block_arrays(self, c, layer, prefix)
            found |= {("layers", layer, *path.split(".")): a for path, a in parts.items()}
        if c.layer_inputs:
            found |= gemma4.input_arrays(self, c, self.prefix)
        found["final_norm", "scale"] = self.scale(f"{self.prefix}norm")
        if not c.tied_embedding:
            head = self.unembedding.removesuffix(".weight")
            found["unembedding", "weight"] = self.one(head, table)
        return found

    def feed_forward(self, layer: int, prefix: str) -> dict[str, Readable | QuantizedArray]:
        c = self.config
        if not c.has_experts(layer):
            name = f"{prefix}{self.names.feed_forward}."
            return self.mlp(name, "mlp", c.sizes[c.mlp_width(layer)])
        if c.experts_apart:
            return {}  # `block_arrays` has all of it
        if not c.shared_d_ff:
            return self.mixture(prefix, layer)
        shared = self.mlp(f"{prefix}{self.names.shared}.", "shared", c.shared_d_ff)
        if c.shared_gate:
            shared["shared.gate"] = self.one(f"{prefix}{self.names.shared}_gate", (1, c.d_model))
        return self.mixture(prefix, layer) | shared

    def attention(self, layer: int, prefix: str) -> dict[str, Assembled]:
        c = self.config
        if c.latent:
            return attention_arrays(self, c, prefix)
        if self.of_gemma4:
            return gemma4.attention_arrays(self, c, layer, prefix)
        D, K, G, h = c.d_model, c.kv_heads, c.group, c.head_size
        found = {
            "attention.query": self.queries(prefix, "weight", D),
            "attention.key_value": self.keys_values(prefix, "weight", D),
            "attention.output": self.one(prefix + "o_proj", (D, K * G * h), (D, K, G, h)),
        }
        if c.output_gate:
            found |= delta.gated_queries(self, c, prefix)
        if c.attention_bias:
            found["attention.query_bias"] = self.queries(prefix, "bias")
            found["attention.key_value_bias"] = self.keys_values(prefix, "bias")
        if c.output_bias:
            found["attention.output_bias"] = self.bias(prefix + "o_proj")
        if c.attention_sinks:
            found["attention.sinks"] = self.one(prefix + "sinks", (K * G,), (K, G), kind="")
        if c.query_key_norm:
            shapes = {"query": (K, G, h), "key": (K, h)} if c.norm_over_heads else {}
            for name in ("query", "key"):
                scale = self.scale(f"{prefix}{name[0]}_norm", shapes.get(name, (h,)))
                found[f"attention.{name}_norm.scale"] = scale
        return found

    def queries(self, prefix: str, kind: str, *last: int) -> Assembled:
        """Weights [K, G, h, D] or biases [K, G, h] of the queries."""
        c = self.config
        shape = (c.kv_heads, c.group, c.head_size, *last)
        corner = (0,) * len(shape)
        piece = self.heads(f"{prefix}q_proj.{kind}", 0, shape, corner, rotated=True)
        return Assembled(self.files, shape, (piece,))

    def keys_values(self, prefix: str, kind: str, *last: int) -> Assembled:
        """Weights [K, 2, h, D] or biases [K, 2, h] of keys and values."""
        c = self.config
        shape, rest = (c.kv_heads, 1, c.head_size, *last), (0,) * len(last)
        pieces = [
            self.heads(f"{prefix}{name}.{kind}", at + 1, shape, (0, at, 0, *rest), rotated=at == 0)
            for at, name in enumerate(("k_proj", "v_proj"))
        ]
        return Assembled(self.files, (shape[0], 2, *shape[2:]), tuple(pieces))

    def heads(self, name: str, part: int, shape: Shape, corner: Shape, rotated: bool) -> Piece:
        """Queries, keys or values (`part` 0 to 2), which may be parts of one stored tensor."""
        c, joined, last = self.config, self.names.query_key_value, shape[HEAD + 1 :]
        order = _half_split(c.rotated, c.head_size) if self.names.paired and rotated else None
        if not joined:
            return Piece(name, (math.prod(shape[: HEAD + 1]), *last), shape, corner, None, order)
        rows = [heads * c.head_size for heads in (c.query_heads, c.kv_heads, c.kv_heads)]
        prefix, _, kind = name.rpartition(".")
        name = f"{prefix.rpartition('.')[0]}.{joined}.{kind}"
        first = sum(rows[:part]) * math.prod(last)
        return Piece(name, (sum(rows), *last), shape, corner, first, order)

    def norms(self, prefix: str) -> dict[str, Assembled]:
        which = ["attention_norm", "mlp_norm"] if self.config.norm_before else []
        if self.config.norm_after:
            which += ["attention_norm_after", "mlp_norm_after"]
        return {f"{ours}.scale": self.scale(prefix + getattr(self.names, ours)) for ours in which}

    def mlp(self, prefix: str, module: str, F: int) -> dict[str, Assembled]:
        D = self.config.d_model
        if joined := self.names.gate_up:
            gate_up = self.one(prefix + joined, (2 * F, D), (2, F, D))
        else:
            gate_up = Assembled(self.files, (2, F, D), self.gate_up(prefix, (), F))
        down = self.one(prefix + self.names.down, (D, F))
        found = {f"{module}.gate_up": gate_up, f"{module}.down": down}
        if self.config.mlp_bias:
            names = enumerate((self.names.gate, self.names.up))
            pieces = [Piece(f"{prefix}{name}.bias", (F,), (1, F), (n, 0)) for n, name in names]
            found[f"{module}.gate_up_bias"] = Assembled(self.files, (2, F), tuple(pieces))
            found[f"{module}.down_bias"] = self.bias(prefix + self.names.down)
        return found

    def mixture(self, prefix: str, layer: int) -> dict[str, Readable | QuantizedArray]:
        D, F, E = self.config.d_model, self.config.d_ff, self.config.experts
        router = {"mlp.router": self.one(prefix + self.names.router, (E, D))}
        if self.config.expert_bias:
            router["mlp.router_bias"] = self.one(prefix + self.names.router, (E,), kind=".bias")
        if self.names.stacked:
            name = f"{prefix}{self.names.experts}."
            stacked = StackedExperts(self.files, self.config, name, self.names.halves)
            keep = [n for n in ("gate_up", "down") if ("layers", layer, "mlp", n) in self.keep]
            return router | {f"mlp.{name}": array for name, array in stacked.arrays(keep).items()}
        if joined := self.names.delta and delta.joined_experts(self, self.config, prefix):
            return router | joined
        experts = [f"{prefix}{self.names.experts}.{expert}." for expert in range(E)]
        gate_up = [p for e, name in enumerate(experts) for p in self.gate_up(name, (e,), F)]
        down = [
            Piece(f"{name}{self.names.down}.weight", (D, F), (1, D, F), (e, 0, 0))
            for e, name in enumerate(experts)
        ]
        if self.config.routing.bias:
            name = f"{prefix}{self.names.router}.e_score_correction_bias"
            correction = Assembled(self.files, (E,), (Piece(name, (E,), (E,), (0,)),))
            router["mlp.correction"] = correction
        return router | {
            "mlp.gate_up": Assembled(self.files, (E, 2, F, D), tuple(gate_up)),
            "mlp.down": Assembled(self.files, (E, D, F), tuple(down)),
        }

    def gate_up(self, prefix: str, expert: Shape, F: int) -> tuple[Piece, ...]:
        D = self.config.d_model
        shape = (*(1 for _ in expert), 1, F, D)
        return tuple(
            Piece(f"{prefix}{name}.weight", (F, D), shape, (*expert, n, 0, 0))
            for n, name in enumerate((self.names.gate, self.names.up))
        )

    def one(
        self, name: str, stored: Shape, shape: Shape | None = None, kind: str = ".weight"
    ) -> Assembled:
        shape = stored if shape is None else shape
        piece = Piece(name + kind, stored, shape, (0,) * len(shape))
        return Assembled(self.files, shape, (piece,))

    def bias(self, name: str) -> Assembled:
        """The bias of a matrix that adds to the residual stream."""
        shape = (self.config.d_model,)
        return Assembled(self.files, shape, (Piece(f"{name}.bias", shape, shape, (0,)),))

    def scale(self, name: str, shape: Shape | None = None) -> Assembled:
        shape = shape or (self.config.d_model,)
        array = self.one(name, (math.prod(shape),), shape)
        return dataclasses.replace(array, offset=self.names.norm_offset)
