"""Tables in Markdown keep their form, whatever their cells say."""

from models.markdown import table


def test_a_cell_ends_neither_its_cell_nor_its_line() -> None:
    found = table(("label", "text"), [("a|b", "two\nlines"), ("c", " d ")])
    assert found.splitlines() == ["label | text", "---|---", r"a\|b | two lines", "c | d"]
