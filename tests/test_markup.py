"""Text of models and users where it is shown: nothing of it is obeyed, every alphabet stays."""

import unicodedata
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unimed.commands.common import one_line, say
from unimed.evaluation.tables import markdown_table
from unimed.markup import for_dicom, for_html, for_markdown, plain_line, plain_text, without_surrogates

ANY = st.text(st.one_of(st.characters(), st.sampled_from("<>&|[]`*\\\x1b\r\n\u202e\u2066\ud800\u2028'\"")), max_size=40)
ALPHABETS = [
    "Läsion in der Leber",
    "病変 肝臓",
    "الكبد",
    "печень",
    "यकृत",
    "κεφαλή",
    "می\u200cخواهم",
    "≥ 5 µm, 3 × 2 cm²",
]


def obeyed(text):
    return [s for s in text if s != "\n" and unicodedata.category(s) in ("Cc", "Cs") or s in "\u202e\u2066\u2028"]


@given(ANY)
def test_nothing_is_obeyed(text):
    assert not obeyed(plain_text(text))
    for function in (plain_line, for_markdown, for_dicom):
        shown = function(text)
        assert not obeyed(shown) and "\n" not in shown
    assert "\\" not in for_dicom(text) and len(for_dicom(text)) <= 64
    assert for_dicom("C:\\one\\two") == "C:/one/two"
    without_surrogates(text).encode()


@given(ANY)
def test_html_is_text(text):
    found = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.append(tag)
    parser.feed(f"<p>{for_html(text)}</p><b title='{for_html(text)}'></b>")
    assert found == ["p", "b"]


@given(st.lists(ANY, min_size=1, max_size=3))
def test_a_table_has_the_cells_it_is_given(cells):
    lines = markdown_table([{"a": cell, "b": 1.0} for cell in cells]).strip("\n").split("\n")
    assert len(lines) == len(cells) + 2
    for line in lines:
        bare = line.replace("\\\\", "").replace("\\|", "")
        assert bare.count("|") == 3 and "<" not in line


def test_names_of_columns_are_escaped_like_cells():
    head, rule, line = markdown_table([{"<b>run</b>|x": 1.0}]).strip("\n").split("\n")
    assert head == "| &lt;b&gt;run&lt;/b&gt;\\|x |" and len(head) == len(rule) == len(line)


@pytest.mark.parametrize("text", ALPHABETS)
def test_alphabets_stay(text):
    assert plain_text(text) == plain_line(text) == for_html(text) == for_dicom(text) == text
    assert for_markdown(text) == text


def test_the_terminal_shows_no_commands(capsys):
    say("a\x1b[31mred\x1b]0;title\x07\rb\u202ec\nd")
    assert capsys.readouterr().out == "a[31mred]0;title\nbc\nd\n"
    assert one_line(ValueError("\x1b[2Jname\n  of a\tfile")) == "[2Jname of a file"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"), ("a|b", "a\\|b"),
        ("![x](http://y)", "!\\[x\\](http://y)"), ("`rm`", "\\`rm\\`"), ("a\\|b", "a\\\\\\|b"),
        ("dice_mean", "dice_mean"),
    ],
)  # fmt: skip
def test_markdown(text, shown):
    assert for_markdown(text) == shown
