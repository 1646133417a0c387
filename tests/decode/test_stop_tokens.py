"""Control tokens that end an answer, by the texts that a vocabulary has."""

from decode.stop_tokens import STOPS, stops_among


def test_the_end_of_a_message_ends_no_answer_where_an_answer_has_several():
    assert "<|end|>" in stops_among(["<|end|>", "<|user|>"])
    assert stops_among(["<|end|>", "<|return|>", "<|call|>"]) == STOPS - {"<|end|>"}
