"""Messages for wrong numbers, as typed on the command line: true, with the limits or with the right spelling."""

from __future__ import annotations

import pytest

from maw.config.fields import check, from_text
from maw.config.tier1_config import kinds
from maw.errors import closest


def answer(name, text):
    return check(kinds()[name], from_text(kinds()[name], text))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("batch_size", "2147483648", "must be at least 1 and at most 65536, got 2147483648"),
        ("batch_size", "9223372036854775808", "must be at least 1 and at most 65536, got 9223372036854775808"),
        ("seed", "1" + "0" * 30, "must be at least 0 and at most 4294967295, got 1" + "0" * 30),
        ("corpus_size", "-" + "9" * 25, "must be at least 1 and at most 1000000000, got -" + "9" * 25),
        ("batch_size", "3.0", "must be a whole number, got '3.0'; write 3"),
        ("batch_size", "1e3", "must be a whole number, got '1e3'; write 1000"),
        ("batch_size", "1,000", "must be a whole number, got '1,000'; write 1000"),
        ("batch_size", "1_000", "must be a whole number, got '1_000'; write 1000"),
        ("batch_size", "\uff11\uff12", "must be a whole number, got '\uff11\uff12'; write 12"),
        ("corpus_size", "1e5", "must be a whole number or full, got '1e5'; write 100000"),
        ("batch_size", "3.5", "must be a whole number, got '3.5'"),
        ("batch_size", "0,5", "must be a whole number, got '0,5'"),
        ("batch_size", "1e-400", "must be a whole number, got '1e-400'"),
        ("batch_size", "1e400", "must be at least 1 and at most 65536, got '1e400'"),
        ("batch_size", "nan", "must be a whole number, got 'nan'"),
        ("batch_size", "", "must be a whole number, got ''"),
        ("weight_decay", "1e400", "must be at least 0 and at most 1, got '1e400'"),
        ("learning_rate", "-1e400", "must be above 0 and at most 1, got '-1e400'"),
        ("weight_decay", "\uff11\uff12", "must be a number, got '\uff11\uff12'; write 12"),
        ("weight_decay", "\u0663", "must be a number, got '\u0663'; write 3"),
        ("weight_decay", "\u22120.5", "must be a number, got '\u22120.5'; write -0.5"),
        ("weight_decay", "0.000_1", "must be a number, got '0.000_1'; write 0.0001"),
        ("weight_decay", "0,5", "must be a number, got '0,5'"),
        ("weight_decay", "nan", "must be a finite number, got nan; it must be at least 0 and at most 1"),
        ("prefix_cache_gb", "inf", "must be a finite number, got inf; it must be at least 0 and at most 1000000"),
        ("max_grad_norm", "0", "must be above 0 and at most 1000000, got 0.0"),
        ("warmup_ratio", "1", "must be at least 0 and below 1, got 1.0"),
        ("router", "GRPO", "must be one of grpo, supervised, soft, random, fixed, got 'GRPO' (did you mean grpo?)"),
    ],
)
def test_a_wrong_value_is_answered_with_what_is_true_of_it(name, text, message):
    assert answer(name, text)[1] == message


@pytest.mark.parametrize("text", ["-0", "-0.0", "-0e5"])
def test_negative_zero_is_zero(text):
    value, wrong = answer("weight_decay", text)
    assert wrong is None and str(value) == "0.0"


def test_a_word_in_other_letters_is_the_closest():
    assert closest(" MAW ", ["naw", "maw"]) == "maw"
