"""Chat templates that a user names: other ones of the model, or files."""

import pytest

from decode.tokenizer import Tokenizer, TokenizerError
from tests.gguf_samples import byte_tokenizer


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ("", "chat template is '', which is unknown"),
        (".", "chat template is '.', which is unknown"),
        ("x" * 5000, "which is unknown; use default, or the path of a file"),
        ("bad.jinja", r"is no Jinja \(unexpected '}'\)"),
        ("empty.jinja", "is empty; give another one"),
    ],
)
def test_what_is_no_chat_template_is_refused_before_a_chat(tmp_path, monkeypatch, chosen, words):
    (tmp_path / "bad.jinja").write_text("{{ messages }")
    (tmp_path / "empty.jinja").write_text(" \n")
    monkeypatch.chdir(tmp_path)
    given = byte_tokenizer() | {"tokenizer.chat_template": "as it is"}
    tokenizer = Tokenizer.from_gguf(given)
    with pytest.raises(TokenizerError, match=words) as caught:
        tokenizer.with_template(chosen)
    assert len(str(caught.value)) < 200
