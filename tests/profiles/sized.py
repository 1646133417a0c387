"""A model known by its sizes that has windows: gpt-oss-120b, as its arrays add up."""

from profiles.floor.sized_models import SizedModel

WINDOWED = SizedModel(
    name="windowed",
    source="huggingface.co/openai/gpt-oss-120b config.json, summed over its arrays",
    layers=36,
    d_model=2880,
    total=116_829_156_672,
    active=5_131_100_160,
    looked_up=579_133_440,
    in_experts=114_701_598_720,
    experts=128,
    experts_per_token=4,
    cached=18_432,
    attention_flops=294_912,
    windowed=18_432,
    window=128,
    windowed_flops=294_912,
)
