"""Keyframes: what may be written, and what it means."""

import pytest
from pack.lora_ops import parse_keyframes


@pytest.mark.parametrize(
    ("text", "percent", "factor"),
    [
        ("", 0.4, 1.0),
        (" , ", 0.4, 1.0),
        ("0.5:2", 0.1, 2.0),
        ("0.5:2", 0.9, 2.0),
        ("0:1, 0.5:0.3", 0.0, 1.0),
        ("0:1, 0.5:0.3", 0.25, 0.65),
        ("0:1, 0.5:0.3", 0.5, 0.3),
        ("0:1, 0.5:0.3", 1.0, 0.3),
        ("0.2:0,0.4:1 , 0.8:-1,", 0.1, 0.0),
        ("0.2:0,0.4:1 , 0.8:-1,", 0.3, 0.5),
        ("0.2:0,0.4:1 , 0.8:-1,", 0.6, 0.0),
        ("0.2:0,0.4:1 , 0.8:-1,", 0.9, -1.0),
    ],
)
def test_linear_between_and_flat_outside(text, percent, factor):
    assert parse_keyframes(text).at(percent) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0.5", 'got "0.5"; write for example'),
        ("half:1", 'got "half:1"'),
        ("0:1:2", 'got "0:1:2"'),
        ("0:", 'got "0:"'),
        ("0:1; 0.5:0", 'got "0:1; 0.5:0"'),
        ("1.5:1", "must lie between 0 and 1"),
        ("-0.1:1", "must lie between 0 and 1"),
        ("nan:1", "must lie between 0 and 1"),
        ("0:inf", "must be finite"),
        ("0:nan", "must be finite"),
        ("0.5:1, 0.2:1", 'must rise, got "0.2:1" after 0.5'),
        ("0.5:1, 0.5:0", "must rise"),
    ],
)
def test_a_mistake_is_one_sentence(text, says):
    with pytest.raises(ValueError, match="schedule must") as caught:
        parse_keyframes(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
