"""Errors: text of files is fit for a terminal."""

from grace_moe.errors import printable


def test_printable_keeps_words_of_any_language():
    assert printable("naïve 日本語 \U0001f469\u200d\U0001f4bb\n\t") == "naïve 日本語 \U0001f469\u200d\U0001f4bb\n\t"
    assert printable("\x00\x07\x9b\x7f\ud800\r") == "??????"
