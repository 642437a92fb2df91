"""Tables on disk."""

from shared.csv_table import read_table, write_table


def test_rows_come_back_and_columns_are_all_that_any_row_has(tmp_path):
    path = tmp_path / "table.csv"
    assert read_table(path) == []
    write_table([{"name": "a, b", "l1": 0.5}, {"name": "c", "error": "no\nluck"}], path)
    assert path.read_text().splitlines()[0] == "name,l1,error"
    rows = read_table(path)
    assert rows == [{"name": "a, b", "l1": "0.5", "error": ""}, {"name": "c", "l1": "", "error": "no\nluck"}]
    write_table([*rows, {"name": "d"}], path)
    assert [row["name"] for row in read_table(path)] == ["a, b", "c", "d"]
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]
