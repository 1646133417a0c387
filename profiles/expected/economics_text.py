"""For people: what else a floor says of systems and money, by questions that flags ask.

Numbers are those of `profiles.expected.answers`, which has their names and units.
"""

from profiles.expected.answers import (
    ExpertLayer,
    Held,
    Pipelined,
    Speculation,
    Traffic,
    Training,
    Utilization,
)
from profiles.floor.deployment import Model
from profiles.floor.passes import Pass
from profiles.floor.tiers import LIFE_S
from profiles.floor.training import OPTIMAL, SERVED, TRAINED
from profiles.report.numbers import exact, ms, number, several


def filled(found: Traffic) -> list[str]:
    """The traffic that fills a slice."""
    slices = [f"{name} {number(count)}" for name, count in found.slices_filled.items()]
    return [
        f"traffic that fills it: {number(found.critical_batch_sequences)} sequences (critical "
        f"batch) x {number(found.steps_per_s)} steps per second (a drain time each) = "
        f"{number(found.tokens_per_s)} tokens/s; published traffic would fill as many such slices: "
        f"{', '.join(slices)}"
    ]


def halved(found: Utilization) -> list[str]:
    """The context at which MFU is half of the best."""
    if (twice := found.halves_at_context_tokens) is None:
        left = number(found.least_mfu_over_most)
        return [
            f"MFU halves at no context: attention's own arithmetic keeps it above {left} of what "
            "it is without a cache"
        ]
    if twice <= 1:
        return [
            "MFU is below half at every context: reading and writing a sequence's states takes "
            "more than twice as long as its arithmetic"
        ]
    return [
        f"MFU halves at a context of {exact(twice)} tokens, where reading a sequence's cache takes "
        "twice as long as its arithmetic; if attention read the square root of the context, at "
        f"the square of that, {number(found.halves_at_context_tokens_of_root)}"
    ]


def expert_layer(found: ExpertLayer | None, model: Model, batch: int) -> list[str]:
    """Where a mixture's experts lie, and how long its tokens travel; empty if that is not known."""
    if found is None:
        return []
    chips = found.domains * found.chips_per_domain
    holding, each = found.chips_with_experts, found.experts_per_chip
    said = [
        f"expert layer: {exact(model.experts)} experts on {several(chips, 'chip')}: {holding} with "
        f"{each} each hold all, {chips - holding} none (floors divide evenly)",
        f"expert layer, tokens to {several(model.experts_per_token, 'expert')} and back: "
        f"{_us(found.exchange_s)} us over {several(found.domains, 'domain')} of "
        f"{found.chips_per_domain} at batch {batch:,}",
    ]
    if found.two_domains_over_one is not None:
        said[-1] += (
            f"; as many bytes a chip take {number(found.two_domains_over_one)} times as long over "
            "two domains as in one, for half of them go through a network "
            f"{number(found.fabric_over_network)} times slower"
        )
    return said


def _us(seconds: float) -> str:
    return number(seconds * 1e6)


def speculation(found: Speculation, step: Pass, model: Model) -> list[str]:
    """The floor of a step that verifies drafts, and the batches at which it pays."""
    drafted = found.drafted_tokens
    said = [
        f"speculation: a step of {several(drafted + 1, 'token')} per sequence keeps "
        f"{number(found.kept_tokens_per_step)} of them if {several(drafted, 'drafted token')} "
        f"pass{'es' * (drafted == 1)} with probability {exact(found.acceptance)} each; at batch "
        f"{step.batch:,} its floor is {ms(found.step_floor_s)} ms, so {ms(found.token_floor_s)} ms "
        f"per token, {number(found.speedup)} times as fast as without (drafts themselves at no "
        "cost)",
        f"speculation pays {_paying(found)} at context {step.context:,}, by floors",
    ]
    if getattr(model, "delta", None):
        said.append(
            f"speculation: generate.py refuses drafts for {model.name}, whose delta layers' states "
            "cannot give refused tokens back; these floors are of an engine that keeps the states "
            "from before, without what that reads and writes"
        )
    return said


def _paying(found: Speculation) -> str:
    first, last = found.first_paying_batch, found.last_paying_batch
    if first is None:
        return "at no batch"
    if last is None:
        return "at every batch that fits" + f", from {first:,}" * (first > 1)
    return f"up to batch {last:,}" if first == 1 else f"from batch {first:,} to {last:,}"


def held(found: Held) -> list[str]:
    """What a cache costs that is held in each tier for so long, and which tier that implies."""
    times = [f"{exact(each)} s" for each in found.held_s]
    said = []
    for tier in found.tiers:
        rounded = " to ".join(dict.fromkeys(map(exact, tier.round_read_s)))
        fetches = [
            f"{number(count)} fetches if held for {time}"
            for time, count in zip(times, tier.fetches, strict=True)
        ]
        said.append(
            f"{tier.tier} ({tier.device}): read once in {number(tier.read_s)} s (round figure "
            f"{rounded}); a cache in it costs as much as {', '.join(fetches)}"
        )
        if tier.usd_per_million_tokens:
            costs = [
                f"{number(usd)} USD for {time}"
                for time, usd in zip(times, tier.usd_per_million_tokens, strict=True)
            ]
            said[-1] += f"; a million tokens in it cost {', '.join(costs)}"
    years = exact(LIFE_S / 86_400 / 365)
    said.append(
        f"prices: a million tokens are {number(found.bytes_per_token / 1e3)} GB of cache; HBM "
        f"costs what its chip does by the hour, other devices are paid off in {years} years of "
        "holding"
    )
    for time, name, rounded in zip(
        times, found.implied_tiers, found.implied_tiers_by_round_figures, strict=True
    ):
        said.append(
            f"held for {time}: {name} by these devices, {rounded} by round figures: there it costs "
            "most nearly what one fetch does"
        )
    parts = [
        f"{number(ratio)} for {time}"
        for time, ratio in zip(times, found.held_over_computed_again, strict=True)
    ]
    return [
        *said,
        f"holding over computing again, a token of a prompt of {found.prompt_tokens:,} in HBM: "
        f"{', '.join(parts)} (expected)",
    ]


def trained(found: Training, step: Pass, tokens_per_s: float, days: float) -> list[str]:
    """How many tokens cost as much to train on as a life of serving, and how far past the optimum.

    Args:
      found: the numbers.
      step: the decode step that serving takes.
      tokens_per_s: traffic of the model, on all slices that it takes.
      days: how long it is served.
    """
    mfu = number(found.serving_mfu)
    return [
        f"served over {several(days, 'day')} at {exact(tokens_per_s)} tokens/s: "
        f"{_trillions(found.served_tokens)} tokens, {SERVED} FLOPs per active parameter each",
        f"compute-optimal training: {_trillions(found.optimal_tokens)} tokens, {OPTIMAL} per "
        f"active parameter; trained tokens that cost as much as those served, {TRAINED} FLOPs per "
        f"active parameter each: {_trillions(found.balanced_tokens)} at the same MFU, "
        f"{number(found.past_optimal)} times as many; {_trillions(found.balanced_tokens_by_mfu)} "
        f"at the expected MFU of a step of {step.batch:,}, {mfu}, and {found.training_mfu} in "
        f"training, {number(found.past_optimal_by_mfu)} times as many",
    ]


def _trillions(count: float) -> str:
    return f"{number(count / 1e12)} trillion"


def pipelined(found: Pipelined, model: Model) -> list[str]:
    """What stages on slices of their own do to memory and latency, and whether they hide hops."""
    stages = found.stages
    hops = f", {ms(found.hops_s)} of them in {several(stages, 'hop')}" if found.hop_s else ""
    said = (
        f"pipeline of {several(stages, 'such slice')}: weights "
        f"{_gb(found.weights_bytes_per_chip_alone)} -> {_gb(found.weights_bytes_per_chip)} GB per "
        f"chip, KV cache {_gb(found.kv_bytes_per_chip)} GB as before, for {stages} batches are "
        f"under way; a token's floor {ms(found.token_floor_s_alone)} -> {ms(found.token_floor_s)} "
        f"ms{hops}; sequences that fit in each batch {found.fitting_sequences_alone:,} -> "
        f"{found.fitting_sequences:,}"
    )
    ratio = found.inside_over_between
    if ratio is None:
        return [said]
    chosen, layers = model.experts_per_token, found.expert_layers_per_stage
    return [
        said,
        f"its hops are {'hidden' if ratio >= 1 else 'not hidden'}: network over fabric, "
        f"{number(ratio / (chosen * 2 * layers))}, x {several(chosen, 'expert')} x 2 x "
        f"{exact(layers)} layers of experts per stage = {number(ratio)}; from "
        f"{several(found.least_layers, 'layer')} on it is 1 or more",
    ]


def _gb(size: float) -> str:
    return number(size / 1e9)
