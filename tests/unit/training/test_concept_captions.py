"""What is written around a concept's name."""

import pytest
from pack.training.concept_captions import (
    OBJECT,
    PERSON,
    TEMPLATES,
    WORDINGS,
    captions_without_name,
    with_name,
    wordings,
)


def test_a_caption_without_the_name_gets_it_in_front():
    assert with_name("a red ball", "sks1") == "<sks1>, a red ball"
    assert with_name("", "sks1") == "<sks1>"
    assert with_name("a <SKS1> ball", "sks1") == "a <SKS1> ball"
    assert with_name("sks1", "sks1") == "<sks1>, sks1"  # without brackets it is no concept
    assert captions_without_name(["<sks1>", "a ball", "", "a <Sks1>"], "sks1") == [2]


def test_every_template_holds_the_caption_once():
    for templates in TEMPLATES.values():
        assert all(template.count("{}") == 1 for template in templates)
        assert len(set(templates)) == len(templates)
    assert len(OBJECT) >= 8
    assert len(PERSON) >= 8


@pytest.mark.parametrize("kind", TEMPLATES)
def test_wordings_hold_the_whole_caption_and_follow_from_the_seed(kind):
    caption = "a <sks1>, red, on snow, in ink"
    found = wordings(caption, kind, 5, 1)
    assert found == wordings(caption, kind, 5, 1)
    assert len(set(found)) == len(found) <= WORDINGS
    for text in found:
        assert all(part in text for part in ("a <sks1>, ", "red", "on snow", "in ink"))
    assert found != wordings(caption, kind, 6, 1) or kind == "as written"


def test_a_caption_as_written_stays_as_it_is_where_there_is_nothing_to_reorder():
    assert wordings("a red <sks1> on snow", "as written", 5, 1) == ["a red <sks1> on snow"]
    assert wordings("a red <sks1>, on snow", "as written", 5, 1) == ["a red <sks1>, on snow"]
    assert wordings("a {odd} <sks1>", "as written", 5, 1) == ["a {odd} <sks1>"]


def test_the_first_part_stays_first():
    texts = wordings("a <sks1>, red, on snow, in ink", "as written", 5, 1)
    assert len(texts) > 1
    assert all(text.startswith("a <sks1>, ") for text in texts)
