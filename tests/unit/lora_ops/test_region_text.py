"""Regions as artists write them: the editor's JSON, and rows of columns."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
from pack.lora_ops.region_text import parse_layout, parse_regions, regions_text
from pack.lora_ops.regions import Box, Region

TWO = """{
  "regions": [
    {"name": "cat", "x": 0, "y": 0.1, "width": 0.5, "height": 0.9, "feather": 0.05},
    {
      "name": "dog",
      "x": 0.5, "y": 0, "width": 0.5, "height": 1,
      "weight": 2, "blend": 0.25, "start_percent": 0.1, "end_percent": 0.9, "colour": "#ff8800"
    }
  ]
}"""


def test_the_editors_text_becomes_regions():
    assert parse_regions(TWO) == (
        Region("cat", Box(0, 0.1, 0.5, 1.0), feather=0.05),
        Region(
            "dog",
            Box(0.5, 0, 1, 1),
            weight=2,
            blend=0.25,
            start_percent=0.1,
            end_percent=0.9,
            colour="#ff8800",
        ),
    )


@pytest.mark.parametrize("text", ["", "  \n", '{"regions": []}', '{"regions": [], "editor": {}}'])
def test_no_region_may_be_written(text):
    assert parse_regions(text) == ()


def test_edges_meet_in_spite_of_rounding():
    text = {
        "regions": [
            {"name": "a", "x": 0.1, "y": 0, "width": 0.2, "height": 1},
            {"name": "b", "x": 0.3, "y": 0, "width": 0.7000000001, "height": 1},
        ]
    }
    first, second = parse_regions(json.dumps(text))
    assert first.box.right == second.box.left == 0.3
    assert second.box.right == 1.0


def test_what_is_written_is_read_again():
    regions = (*parse_regions(TWO), *parse_layout("1,2,1 / 3: 1,1,1"))
    again = parse_regions(regions_text(regions))
    for before, after in zip(regions, again, strict=True):
        assert tuple(after.box) == pytest.approx(tuple(before.box), abs=1e-11)
        assert replace(after, box=before.box) == before
    assert "weight" not in regions_text(regions[:1])


def one(**fields) -> str:
    region = {"name": "cat", "x": 0, "y": 0, "width": 0.5, "height": 0.5, **fields}
    lines = [f'      "{key}": {json.dumps(value)}' for key, value in region.items()]
    return '{\n  "regions": [\n    {\n' + ",\n".join(lines) + "\n    }\n  ]\n}"


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        (one(x=-0.1), 5, '"x" of region "cat" must lie between 0 and 1, got -0.1'),
        (one(x=512), 5, '"x" of region "cat" must lie between 0 and 1, got 512'),
        (one(width=-0.2), 7, '"width" of region "cat" must be above 0 and at most 1, got -0.2'),
        (one(height=0), 8, '"height" of region "cat" must be above 0 and at most 1, got 0'),
        (one(width="wide"), 7, '"width" of region "cat" must be a number, got "wide"'),
        (one(width=True), 7, '"width" of region "cat" must be a number, got true'),
        (one(width=None), 7, '"width" of region "cat" must be a number, got null'),
        (one(x=0.7), 5, 'region "cat" must end inside the picture, got x 0.7 + width 0.5'),
        (one(y=0.7), 6, 'region "cat" must end inside the picture, got y 0.7 + height 0.5'),
        (one(feather=2), 9, '"feather" of region "cat" must lie between 0 and 1, got 2'),
        (one(weight=-1), 9, '"weight" of region "cat" must lie between 0 and 100, got -1'),
        (one(name=""), 4, '"name" must be a text that is not empty, got ""'),
        (one(name=3), 4, '"name" must be a text that is not empty, got 3'),
        (one(colour="red"), 9, '"colour" of region "cat" must be written as #rrggbb, got "red"'),
        (one(widht=0.5), 9, 'region "cat" has no "widht"'),
        (
            one(start_percent=0.5, end_percent=0.2),
            10,
            '"end_percent" of region "cat" must be above its "start_percent", got 0.2 after 0.5',
        ),
        ('{"regions": [\n{"x": 0}\n]}', 2, 'a region must have a "name", "y", "width", "height"'),
        (
            '{"regions": [\n{"name": "a", "x": 0,\n"y": 0, "height": 1}\n]}',
            2,
            'region "a" must have a "width"',
        ),
        ('{"regions": [\n[0, 0, 1, 1]]}', 2, "a region must be written in braces"),
        ('{"regions":\n{}}', 1, '"regions" must be a list'),
        ('{\n"region": []}', 2, 'must have "regions" and nothing else'),
        ("[]", 1, 'must be one object with "regions"'),
        ("{}", 1, 'must be one object with "regions"'),
        ('{"regions": [\n{"name": "a",}\n]}', 2, "must be valid JSON, got"),
        ('{"regions": [\n\n', 3, "must be valid JSON, got"),
        (
            '{"regions": [{"name": "a", "x": NaN,\n"y": 0, "width": 1, "height": 1}]}',
            1,
            '"x" of region "a" must lie between 0 and 1, got NaN',
        ),
        (
            '{"regions": [{"name": "a", "x": 0,\n"x": 0, "y": 0, "width": 1, "height": 1}]}',
            2,
            '"x" must be given once',
        ),
    ],
)
def test_a_mistake_is_one_sentence_with_its_line(text, line, says):
    with pytest.raises(ValueError, match=f"^the regions, line {line}: ") as caught:
        parse_regions(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_twice_is_refused_with_both_lines():
    region = '{"name": "cat", "x": 0, "y": 0, "width": 1, "height": 1}'
    text = '{"regions": [\n' + region + ",\n\n" + region + "]}"
    with pytest.raises(ValueError, match=r'line 4: .* each name once, got "cat" .* line 2'):
        parse_regions(text)


def test_spaces_around_a_name_are_none_of_it():
    (region,) = parse_regions(one(name=" the cat\n"))
    assert region.name == "the cat"
    region = '{"name": "%s", "x": 0, "y": 0, "width": 1, "height": 1}'
    text = '{"regions": [\n' + region % "cat" + ",\n" + region % " cat " + "]}"
    with pytest.raises(
        ValueError, match=r'line 3: .* each name once, got "cat" here and in line 2'
    ):
        parse_regions(text)
    with pytest.raises(ValueError, match='"x" of region "cat" must be a number'):
        parse_regions(one(name=" cat", x="left"))


# rows of columns
def boxes(text: str) -> list[tuple[float, ...]]:
    return [tuple(region.box) for region in parse_layout(text)]


def test_rows_of_columns():
    assert boxes("1,2,1 / 1") == [
        (0, 0, 0.25, 0.5),
        (0.25, 0, 0.75, 0.5),
        (0.75, 0, 1, 0.5),
        (0, 0.5, 1, 1),
    ]
    assert boxes("1") == [(0, 0, 1, 1)]
    assert boxes("1,1\n1") == boxes("1,1/1")
    assert boxes("3: 1 / 1: 0.5, 0.5") == [(0, 0, 1, 0.75), (0, 0.75, 0.5, 1), (0.5, 0.75, 1, 1)]
    assert boxes(" ") == []


def test_neighbours_share_their_edges_exactly():
    found = boxes("1,1,1,1,1,1,1 / 1,2,3,4,5 / 0.3,0.3,0.3")
    for left, right in pairwise(found[:7]):
        assert left[2] == right[0]
    assert {box[3] for box in found[:7]} == {box[1] for box in found[7:12]}
    assert [box[2] for box in (found[6], found[11], found[14])] == [1.0, 1.0, 1.0]
    assert {box[3] for box in found[12:]} == {1.0}


def test_names_go_row_by_row():
    assert [r.name for r in parse_layout("1,1/1")] == ["region 1", "region 2", "region 3"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1,,2", 'row 1 must be positive numbers with commas between them, got "1,,2"'),
        ("1 / a", 'row 2 must be positive numbers with commas between them, got "a"'),
        ("1 / 0,1", 'row 2 must be positive numbers with commas between them, got "0,1"'),
        ("-1", 'row 1 must be positive numbers with commas between them, got "-1"'),
        ("1 / inf", 'row 2 must be positive numbers with commas between them, got "inf"'),
        ("1 / / 1", 'row 2 must be positive numbers with commas between them, got ""'),
        ("x: 1", 'row 1 must begin with a positive height before its colon, got "x"'),
        ("0: 1", 'row 1 must begin with a positive height before its colon, got "0"'),
    ],
)
def test_a_mistake_names_the_row(text, says):
    with pytest.raises(ValueError, match="write for example") as caught:
        parse_layout(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
