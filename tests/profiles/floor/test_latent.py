"""What latent attention costs, against DeepSeek-V3's numbers counted by hand."""

import dataclasses

import jax.numpy as jnp
import pytest

from model.catalog import find_model
from model.dtypes import BFLOAT16, Dtypes
from profiles.floor.alike_layers import kv_token_bytes, latent_flops
from profiles.floor.bytes_and_flops import PassCounter
from profiles.floor.passes import Pass
from profiles.floor.sized_models import SizedPassCounter, sized_models
from sharding.catalog import LAYOUTS, attend_by, divide_experts
from sharding.placement import Placement
from sharding.quantization import QUANTIZATIONS

V3 = find_model("deepseek-v3")
LAYERS, HEADS, RANK, ROTARY, CONTENT, VALUE = 61, 128, 512, 64, 128, 128
EIGHT = {"x": 2, "y": 2, "z": 2}
ONE_D = LAYOUTS["weight_stationary_1d"]


def placed(attention: str, mesh: dict[str, int]) -> Placement:
    return Placement.of(attend_by(ONE_D, attention), V3.sizes, mesh)


def test_a_cached_token_is_a_latent_and_a_rotary_key_in_each_layer():
    one = LAYERS * (RANK + ROTARY) * 2
    assert kv_token_bytes(V3, placed("heads", {"x": 1, "y": 1, "z": 1}), BFLOAT16) == one
    # Heads share the latent, so that chips that divide them each read it whole.
    assert kv_token_bytes(V3, placed("heads", EIGHT), BFLOAT16) == one
    assert kv_token_bytes(V3, placed("batch", EIGHT), BFLOAT16) == one / 8
    int8 = Dtypes(jnp.bfloat16, None, QUANTIZATIONS["int8"])
    assert kv_token_bytes(V3, placed("batch", EIGHT), int8) == LAYERS * (RANK + ROTARY + 4) / 8


def test_a_step_takes_queries_to_latents_and_a_prompt_makes_keys_of_them():
    absorbed = LAYERS * 2 * HEADS * (2 * RANK + ROTARY)
    direct = LAYERS * 2 * HEADS * (CONTENT + ROTARY + VALUE)
    expansion = LAYERS * 2 * RANK * HEADS * (CONTENT + VALUE)
    assert latent_flops(V3, cached=4096, tokens=1) == 4097 * absorbed
    assert latent_flops(V3, cached=0, tokens=100) == 5050 * direct
    # A few tokens after many take less where they are absorbed.
    assert latent_flops(V3, cached=1000, tokens=2) == 1000 * 2 * absorbed + 3 * direct
    assert latent_flops(V3, cached=1000, tokens=500) == (
        1000 * (500 * direct + expansion) + 125_250 * direct
    )


@pytest.mark.parametrize("pass_", [Pass(64, 4096), Pass(4, 0, 512), Pass(4, 2048, 512)])
def test_its_arrays_cost_what_its_sizes_say_when_summed_by_hand(pass_):
    """The sized model counts no norms and no bias of a router among what is multiplied."""
    counts = PassCounter(V3, placed("heads", {"x": 1, "y": 1, "z": 1}), BFLOAT16).count(pass_)
    sized = SizedPassCounter(sized_models()["deepseek-v3-even"], BFLOAT16, 1).count(pass_)
    vectors = LAYERS * (2 * 7168 + 1536 + RANK) + 7168 + 58 * 256
    assert counts.flops == pytest.approx(sized.flops, rel=1e-3)
    assert counts.kv_read == sized.kv_read and counts.kv_written == sized.kv_written
    assert counts.weights_resident == sized.weights_resident + 2 * vectors  # those are float32
    assert counts.weights_read == pytest.approx(sized.weights_read, rel=1e-4)


def test_every_device_reads_weights_of_heads_no_more_than_it_has():
    """In two dimensions d_model divides no weight of heads, whose copies are cut as queries are."""
    only = {
        name: PassCounter(
            V3, Placement.of(LAYOUTS[name], V3.sizes, EIGHT), BFLOAT16,
            lambda path: path[2:] in (("attention", "key"), ("attention", "value")),
        )
        for name in ("weight_stationary_1d", "weight_stationary_2d")
    }  # fmt: skip
    whole = LAYERS * HEADS * (CONTENT + VALUE) * RANK * 2
    assert [each.resident for each in only.values()] == [whole / 8, whole / 4]
    assert [each.weights_read(1) for each in only.values()] == [whole / 8, whole / 8]


def test_dense_layers_and_shared_experts_are_read_whatever_the_tokens():
    placement = Placement.of(divide_experts(ONE_D), V3.sizes, EIGHT)
    counter = PassCounter(V3, placement, BFLOAT16)
    least, most = counter.weights_read(1, "least"), counter.weights_read(1, "all")
    expert = 3 * 7168 * 2048 * 2
    assert most - least == pytest.approx(58 * (256 - 8) * expert / 8)
    none = dataclasses.replace(V3, shared_d_ff=0)
    without = PassCounter(none, Placement.of(ONE_D, none.sizes, EIGHT), BFLOAT16)
    assert counter.weights_read(1, "all") - without.weights_read(1, "all") == 58 * expert / 8


def test_the_weights_that_are_gathered_at_once_are_those_of_a_layer_with_experts():
    """A mean over all layers would be less: the first three have one MLP."""
    placement = Placement.of(LAYOUTS["weight_gathered_xyz"], V3.sizes, EIGHT)

    def at_once(layer: int | None) -> float:
        """What a batch holds beside what each of its sequences adds."""
        counter = PassCounter(V3, placement, BFLOAT16, lambda path: layer in (None, path[1]))
        one, two = (counter.count(Pass(batch, 100, 1)).activations for batch in (8, 16))
        return 2 * one - two

    with_experts = at_once(layer=3)
    assert with_experts > 256 * 3 * 7168 * 2048 * 2 > 10 * at_once(layer=0) > 0
    assert at_once(None) == pytest.approx(with_experts)
    line = PassCounter(V3, placement, BFLOAT16).line(100, 100)
    assert line.resident - line.stored == pytest.approx(with_experts)
