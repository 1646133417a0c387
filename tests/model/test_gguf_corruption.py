"""Damaged GGUF files end in one line that says so: no crash, no hang, no flood of memory."""

import struct
import time
import tracemalloc

import numpy as np
import pytest

from decode.tokenizer import Tokenizer, TokenizerError
from model.config_checks import ConfigError
from model.weights import WeightsError
from model.weights.gguf import read_config, read_parameters
from model.weights.gguf_file import GGUFFile
from tests.gguf_samples import write_tiny_gguf

# Of Jinja, about a chat template with a flipped byte.
pytestmark = pytest.mark.filterwarnings("ignore:invalid escape sequence")

EXPECTED = (WeightsError, ConfigError, TokenizerError)
HUGE = (2**64 - 1, 2**63 - 1, 2**62, 2**40, 2**32 - 1, 2**31, 0)


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """The bytes of a good file and where its tensor data starts."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_tiny_gguf(path, quantization="Q8_0", layers=1, tied=False)
    file = GGUFFile(path)
    return path.read_bytes(), min(info.offset for info in file.tensors.values())


def use(path):
    """Does with a file all that a program would, and checks what it gets."""
    file = GGUFFile(path)
    config = read_config(file)
    D, F, V = config.d_model, config.d_ff, config.vocabulary
    K, G, h = config.kv_heads, config.group, config.head_size
    shapes = {
        "embedding.weight": (V, D),
        "attention_norm.scale": (D,),
        "attention.query": (K, G, h, D),
        "attention.key_value": (K, 2, h, D),
        "attention.output": (D, K, G, h),
        "mlp_norm.scale": (D,),
        "mlp.gate_up": (2, F, D),
        "mlp.down": (D, F),
        "final_norm.scale": (D,),
        "unembedding.weight": (V, D),
    }
    for where, value in read_parameters(file, config):
        assert value.shape == shapes[".".join(where[-2:])]
        assert np.isfinite(value).all()
    tokenizer = Tokenizer.from_gguf(file.metadata)
    assert isinstance(tokenizer.decode(tokenizer.encode("the end")), str)
    assert isinstance(tokenizer.chat([{"role": "user", "content": "hello"}]), str)


def outcome(path, damaged):
    """The one line that a damaged file ends in, or None where the damage is harmless."""
    path.write_bytes(damaged)
    start = time.thread_time()  # other processes' time is not this file's
    try:
        use(path)
        message = None
    except EXPECTED as error:
        message = str(error)
        assert "\n" not in message
        assert len(message) < 600
        assert "; " in message
    assert time.thread_time() - start < 5
    return message


def test_the_undamaged_sample_is_good(tmp_path, sample):
    assert outcome(tmp_path / "x.gguf", sample[0]) is None


@pytest.mark.parametrize("seed", range(8))
def test_flipped_bytes_anywhere_are_refused_or_harmless(tmp_path, sample, seed):
    good, data_start = sample
    random = np.random.default_rng(seed)
    refused = 0
    for case in range(50):
        # One in ten among the weights; half of the others among the tensor infos at the end of
        # the header, since the tokens fill most of it.
        low, high = (data_start, len(good)) if case % 10 == 0 else (0, data_start)
        low = data_start - 900 if case % 10 > 5 else low
        damaged = bytearray(good)
        for at in random.integers(low, high, random.integers(1, 4)):
            damaged[at] = random.integers(256) if case % 2 else damaged[at] ^ 1 << at % 8
        refused += outcome(tmp_path / f"{case}.gguf", damaged) is not None
    assert refused > 10


def test_numbers_overwritten_by_extremes_are_refused_or_harmless(tmp_path, sample):
    good, data_start = sample
    random = np.random.default_rng(0)
    refused = 0
    for case in range(150):
        at = int(
            random.integers(0, 800) if case % 2 else random.integers(data_start - 900, data_start)
        )
        number = struct.pack("<Q", HUGE[case % len(HUGE)])
        found = outcome(tmp_path / f"{case}.gguf", good[:at] + number + good[at + 8 :])
        refused += found is not None
    assert refused > 75


def test_a_file_cut_short_anywhere_is_refused(tmp_path, sample):
    good, data_start = sample
    ends = np.random.default_rng(0).integers(1, data_start, 60).tolist()
    for end in [1, 4, 8, 16, 24, *ends, data_start, len(good) - 33]:
        message = outcome(tmp_path / f"{end}.gguf", good[:end])
        assert message is not None
        assert "cut short" in message


def header(version=3, tensors=0, keys=0):
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


def text(value):
    return struct.pack("<Q", len(value)) + value


def tensor(name=b"t", shape=(32,), kind=0, offset=0):
    numbers = struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    return text(name) + numbers


ARRAY, STRING, UINT32, BOOL = (struct.pack("<I", number) for number in (9, 8, 4, 7))

CRAFTED = {
    "magic": (b"GGML" + bytes(60), "not b'GGUF'"),
    "version": (header(4), "version of x.gguf is 4"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "many tensors": (header(tensors=2**60), "a tensor name"),
    "many keys": (header(keys=2**60), "a metadata key"),
    "long key": (header(keys=1) + struct.pack("<Q", 2**63) + b"key", "9223372036854775808 bytes"),
    "long array": (header(keys=1) + text(b"k") + ARRAY + UINT32 + struct.pack("<Q", 2**61), "'k'"),
    "long list": (header(keys=1) + text(b"k") + ARRAY + STRING + struct.pack("<Q", 2**61), "'k'"),
    "array of arrays": (
        header(keys=1) + text(b"k") + ARRAY + ARRAY + struct.pack("<Q", 1),
        "array of arrays",
    ),
    "unknown type": (header(keys=1) + text(b"k") + struct.pack("<I", 99), "99, not a GGUF value"),
    "no bool": (header(keys=1) + text(b"k") + BOOL + b"\x02", "neither false nor true"),
    "no UTF-8": (header(keys=1) + text(b"\xff\n") + UINT32 + bytes(4), "not UTF-8"),
    "key twice": (header(keys=2) + 2 * (text(b"k\n") + UINT32 + bytes(4)), r"'k\\n' twice"),
    "alignment": (
        header(keys=1) + text(b"general.alignment") + UINT32 + struct.pack("<I", 48),
        "48, not a power of two",
    ),
    "tensor twice": (header(tensors=2) + tensor() + tensor(offset=128) + bytes(512), "'t' twice"),
    "no dimensions": (header(tensors=1) + tensor(shape=()) + bytes(512), "0, not 1 to 4"),
    "five dimensions": (header(tensors=1) + tensor(shape=(1,) * 5) + bytes(512), "5, not 1 to 4"),
    "empty dimension": (header(tensors=1) + tensor(shape=(32, 0)) + bytes(512), r"\[0, 32\]"),
    "half a block": (header(tensors=1) + tensor(shape=(33,), kind=8) + bytes(512), "blocks of 32"),
    "tensor type": (header(tensors=1) + tensor(kind=999) + bytes(512), "999, not a known type"),
    "offset": (header(tensors=1) + tensor(offset=3) + bytes(512), "3, not a multiple of 32"),
    "beyond the end": (header(tensors=1) + tensor(shape=(2**40,) * 4) + bytes(512), "up to byte"),
    "overlap": (
        header(tensors=2) + tensor() + tensor(b"u", offset=32) + bytes(512),
        "'u' of x.gguf is stored over tensor 't'",
    ),
}


@pytest.mark.parametrize("case", CRAFTED)
def test_each_rule_of_the_format_is_kept_without_using_memory(tmp_path, case):
    content, message = CRAFTED[case]
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError, match=message):
            GGUFFile(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_head_size_that_no_tensor_confirms_sizes_nothing(tmp_path):
    path = tmp_path / "x.gguf"
    metadata = {f"llama.attention.{name}_length": 2**31 for name in ("key", "value")}
    metadata |= {"llama.rope.dimension_count": 2**31, "llama.rope.scaling.factor": 2.0}
    write_tiny_gguf(path, metadata=metadata)
    with pytest.raises(WeightsError, match="misshapen"):
        read_config(GGUFFile(path))


def test_a_layer_count_that_no_tensor_confirms_sizes_nothing(tmp_path):
    path = tmp_path / "x.gguf"
    write_tiny_gguf(path, metadata={"llama.block_count": 2**32 - 1})
    with pytest.raises(WeightsError, match="is 4294967295, with only 20 tensors"):
        read_config(GGUFFile(path))
