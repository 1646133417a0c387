"""A decode step by the kernels of GPUs, interpreted, gives the logits of the plain form.

In every layout that reaches them, and in those that share slots, which do not.
"""

import numpy as np
import pytest

from model import attention, attention_gpu_step, norm, norm_gpu
from model.dtypes import FLOAT32, Dtypes
from model.gpu_kernels import kernels_on
from sharding.catalog import LAYOUTS, attend_by
from sharding.mesh import parse_mesh
from sharding.placement import Placement
from sharding.quantization import QUANTIZATIONS
from sharding.stored_types import KERNELS_BY_DEFAULT
from tests.engines import config_of, random_engine

ONE, TWO = "weight_stationary_1d", "weight_stationary_2d"
SLOTS, PROMPT, STEPS = 24, 13, 2


def logits_of(family: str, layout, mesh: str, dtypes: Dtypes, batch: int) -> np.ndarray:
    """Logits of a few steps after prompts of several lengths, [STEPS, B, V]."""
    engine = random_engine(config_of(family, layers=1), layout, mesh, dtypes)
    random = np.random.default_rng(0)
    tokens = random.integers(0, 256, (batch, PROMPT + STEPS)).astype(np.int32)
    lengths = np.where(np.arange(batch) % 2, PROMPT, PROMPT - 4).astype(np.int32)
    _, cache = engine.prefill(engine.new_cache(batch, SLOTS), tokens[:, :PROMPT], lengths)
    found = []
    for step in range(STEPS):
        token, length = engine.put(tokens[:, PROMPT + step]), engine.put(lengths + np.int32(step))
        logits, cache = engine.decode_step(cache, token, length)
        found.append(np.asarray(logits))
    return np.stack(found)


@pytest.fixture
def launched(monkeypatch):
    """Names of the kernels that are traced, once the forms of GPUs are chosen."""
    names = set()

    def interpreted(module, name: str) -> None:
        kernel = getattr(module, name)

        def noted(*operands, **options):
            names.add(name)
            return kernel(*operands, interpret=True, **options)

        monkeypatch.setattr(module, name, noted)

    def choose() -> set[str]:
        for module in (attention, norm):
            monkeypatch.setattr(
                module,
                "by_platform",
                lambda *operands, default, cuda=None: (cuda or default)(*operands),
            )
        return names

    interpreted(attention_gpu_step, "attend_step")
    interpreted(norm_gpu, "add_and_norm")
    attention.attend_step.clear_cache()
    return choose


def named(family: str, layout, mesh: str, dtypes: Dtypes) -> list[str]:
    """The kernels that a record of a step names."""
    config = config_of(family, layers=1)
    placement = Placement.of(layout, config.sizes, parse_mesh(mesh))
    return kernels_on("gpu", config, dtypes, placement).split(",")


def check(launched, expected: set[str], *case) -> None:
    plain = logits_of(*case)
    names = launched()
    by_kernels = logits_of(*case)
    assert names == expected
    assert ("attention_step" in named(*case[:-1])) == ("attend_step" in expected)
    assert np.abs(by_kernels - plain).max() < 1e-4 * np.abs(plain).max()


def test_one_token_on_one_device(launched):
    kernels = {"attend_step", "add_and_norm"}
    check(launched, kernels, "grouped", LAYOUTS[ONE], "1", FLOAT32, 1)


@pytest.mark.parametrize("family", ["latent", "experts_with_sinks"])
def test_a_record_names_no_kernel_that_a_model_never_takes(family):
    assert named("grouped", LAYOUTS[ONE], "1", FLOAT32)[:2] == ["attention_step", "norm"]
    assert named(family, LAYOUTS[ONE], "1", FLOAT32) == [*KERNELS_BY_DEFAULT[1:]]
    asked = Dtypes("float32", gpu_kernels=("attention_step",))
    assert named(family, LAYOUTS[ONE], "1", asked) == ["none"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "layout", "mesh", "batch", "kernels"),
    [
        ("grouped", LAYOUTS[ONE], "1x1x2", 3, {"attend_step"}),
        ("multi_head_parallel", attend_by(LAYOUTS[TWO], "batch"), "2x2x1", 4, {"attend_step"}),
        ("biased_windowed", attend_by(LAYOUTS[TWO], "sequence"), "1x2x1", 1, set()),
    ],
    ids=["heads", "batch", "slots"],
)
def test_a_layout(launched, family, layout, mesh, batch, kernels):
    check(launched, kernels, family, layout, mesh, FLOAT32, batch)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["multi_query_parallel", "two_norms_and_caps", "experts"])
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("mesh", ["1", "1x2x4", "2x2x2"])
def test_a_family(launched, family, mesh, batch):
    kernels = {"attend_step"} | ({"add_and_norm"} if batch == 1 else set())
    check(launched, kernels, family, LAYOUTS[ONE], mesh, FLOAT32, batch)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["chunks", "borrowed_caches"])
def test_slots_of_a_chunk_and_caches_of_other_layers(launched, family):
    check(launched, {"attend_step"}, family, LAYOUTS[ONE], "1", FLOAT32, 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "kernels"), [((), set()), (("norm",), {"add_and_norm"}), (("int4",), set())]
)
def test_kernels_that_are_not_asked_for_are_not_there(launched, asked, kernels):
    dtypes = Dtypes("float32", gpu_kernels=asked)
    check(launched, kernels, "grouped", LAYOUTS[ONE], "1", dtypes, 1)


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["int8", "fp8"])
def test_a_cache_in_few_bits(launched, storage):
    dtypes = Dtypes("float32", cache=QUANTIZATIONS[storage])
    check(launched, {"attend_step"}, "grouped", LAYOUTS[ONE], "1x1x2", dtypes, 2)
