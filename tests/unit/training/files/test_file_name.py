"""File names as users type them."""

import pytest
from pack.training.files.file_name import relative_name


@pytest.mark.parametrize("text", ["my_style", "sub/my style", "a\\b", "Größe.v2", "x" * 200])
def test_plain_names_pass(text):
    assert str(relative_name(text)) == text.replace("\\", "/")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "../x",
        "a/../b",
        "a/..",
        "/etc/x",
        "\\\\server\\x",
        "C:\\x",
        "c:x",
        ".",
        "a//b",
        "a/",
        "a:b",
        "what?",
        "a*",
        "a|b",
        '"a"',
        "a\nb",
        "NUL",
        "com1.txt",
        ".hidden",
        "a.",
        "a /b",
        "x" * 201,
        "ü" * 101,
    ],
)
def test_names_that_leave_the_folder_or_fit_no_system_are_refused(text):
    with pytest.raises(ValueError, match="filename must be a plain name, or subfolder/name") as e:
        relative_name(text, "filename")
    assert "\n" not in str(e.value)
