"""One printer of tables: alignment, remarks, widths, and the same cells in Markdown."""

from profiles.report.table import WIDTH, Table, wrap

HEAD = "what", "mesh\nxyz", "count"


def test_words_stand_to_the_left_and_numbers_to_the_right():
    text = Table(HEAD, [("a", "1x1x16", "1,024"), ("longer", "", "7")]).terminal()
    assert text.splitlines() == [
        "          mesh",
        "what       xyz  count",
        "a       1x1x16  1,024",
        "longer              7",
    ]


def test_an_alignment_that_is_given_holds():
    rows = [("1", "2", "x"), ("100", "3", "longer")]
    assert Table(HEAD, rows, align="lcr").terminal().splitlines()[1:] == [
        "what  xyz    count",
        "1      2         x",
        "100    3    longer",
    ]
    rule = Table(HEAD, rows, align="lcr").markdown().splitlines()[1]
    assert rule == "|---|:---:|---:|"


def test_a_remark_takes_the_place_of_missing_cells_and_stays_within_the_width():
    remark = "no | room " * 20
    table = Table(HEAD, [("a", "1", "2"), ("b",)], remarks=["", remark], remarks_head="status")
    *_, last = lines = table.terminal().splitlines()
    assert lines[3].startswith("b     no | room") and last.startswith(" " * 6 + "room")
    assert max(map(len, lines)) <= WIDTH
    assert table.markdown().splitlines()[-1] == f"| b | {remark.replace('|', chr(92) + '|')} |  |"
    alone = Table(("what",), [("b",)], remarks=["why"], remarks_head="status").markdown()
    assert alone.splitlines() == ["| what | status |", "|---|---:|", "| b | why |"]


def test_spare_columns_are_left_out_the_last_first_and_only_where_they_must_be():
    head, row = ("a", "b", "c", "d"), ("x" * 50, "1" * 26, "2" * 20, "3" * 30)
    kept = [Table(head, [row], spare=spare).terminal().split("\n")[0].split() for spare in
            ((), (1, 2), (1,), (0, 1, 2, 3))]  # fmt: skip
    assert kept == [list("abcd"), list("abd"), list("acd"), list("abc")]
    assert "| a | b | c | d |" in Table(head, [row], spare=(1, 2)).markdown()


def test_markdown_of_some_columns_has_them_in_the_order_asked_for():
    text = Table(HEAD, [("a", "1x1x2", "3")]).markdown(only=("count", "mesh xyz"))
    assert text.splitlines() == ["| count | mesh xyz |", "|---:|---:|", "| 3 | 1x1x2 |"]


def test_a_long_line_is_indented_behind_its_first():
    first, *others = wrap("word " * 50, indent=4).splitlines()
    assert first.startswith("word") and all(line.startswith("    word") for line in others)
    assert max(map(len, (first, *others))) <= WIDTH
