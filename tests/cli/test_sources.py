"""References from every format, from folders that tell columns, and from URIs; errors name the remedy."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.orc
import pyarrow.parquet as pq
import pytest

from tidegauge.cli import sources
from tidegauge.layout import Kind
from tidegauge.profile import Reference


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    return pa.table({"age": rng.normal(size=3_000), "country": rng.choice(["de", "fr"], 3_000)})


@pytest.fixture
def lake(tmp_path, table):
    """A partitioned data set, with what Spark leaves beside it."""
    for number, region in enumerate(("eu west", "us", None)):
        name = "__HIVE_DEFAULT_PARTITION__" if region is None else region.replace(" ", "%20")
        folder = tmp_path / "lake" / f"region={name}"
        folder.mkdir(parents=True)
        pq.write_table(table.slice(number * 1_000, 1_000), folder / "part-0.parquet", row_group_size=300)
    (tmp_path / "lake" / "_SUCCESS").write_text("")
    (tmp_path / "lake" / "_temporary").mkdir()
    pq.write_table(table, tmp_path / "lake" / "_temporary" / "x.parquet")
    return tmp_path / "lake"


def built(command, tmp_path, *arguments):
    done = command("reference", "build", *arguments, "--model", "m", "-o", tmp_path / "o.parquet")
    assert done.exit_code == 0, done.stderr
    return (tmp_path / "o.parquet").read_bytes(), done


def test_every_way_to_name_the_rows_gives_the_same_reference(command, tmp_path, table, lake):
    pa.orc.write_table(table, tmp_path / "t.orc")
    pa.csv.write_csv(table, tmp_path / "t.csv")
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress((tmp_path / "t.csv").read_bytes()))
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=700)
    uri = tmp_path.as_uri()
    ways = ("t.orc", "t.csv.gz", "t.jsonl", f"{uri}/t.parquet", f"{uri}/t.par?uet", "lake", f"{uri}/lake")
    ways += (f"{uri}/lake/*/part-*.parquet", f"{uri}/**/part-0.parquet", "lake/**/part-0.parquet")
    expected, _ = built(command, tmp_path, "t.csv")
    assert [way for way in ways if built(command, tmp_path, way)[0] != expected] == []


def test_folders_tell_a_column_where_that_is_asked_for(command, tmp_path, lake):
    _, done = built(command, tmp_path, "lake")
    assert "--partitions" in done.stderr
    _, done = built(command, tmp_path, "lake", "--partitions")
    assert "--partitions" not in done.stderr
    [region] = [one for one in Reference.load(tmp_path / "o.parquet").profiles if one.name == "region"]
    assert (region.kind, region.categories, region.missing) == (Kind.CATEGORICAL, ("eu west", "us"), 1_000)


def test_a_file_is_cut_into_pieces_that_hold_each_row_once(tmp_path, table, monkeypatch):
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=100)
    [source] = sources.find([str(tmp_path / "t.parquet")])
    assert source.pieces() == [source]
    monkeypatch.setattr(sources, "PIECE_BYTES", source.nbytes // 6)
    pieces = source.pieces()
    assert 4 <= len(pieces) <= 8
    rows = [rows for piece in pieces for rows in piece.batches()]
    assert pa.Table.from_batches(rows).equals(table)


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.orc"])
def test_single_columns_are_read_where_they_are_there(tmp_path, table, name):
    writers = {"parquet": pq.write_table, "csv": pa.csv.write_csv, "orc": pa.orc.write_table}
    writers[name[2:]](table, tmp_path / name)
    [source] = sources.find([str(tmp_path / name)])
    [rows] = source.batches(only=["country", "nobody"])
    assert rows.schema.names == ["country"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("ftp://host/x.parquet",), "ftp:// is not known; there are s3://"),
        (("file:///nowhere/at/all",), "no such file"),
        (("ftp://me:secret@host/x.parquet",), "ftp://…@host"),
        (("file:///nowhere/*.parquet",), "no such file"),
        (("hdfs://host/x.parquet",), "set JAVA_HOME, HADOOP_HOME and CLASSPATH"),
        (("late.csv",), "write the rows as Parquet instead"),
        (("t.parquet", "--ignore", "ages"), "no column is called 'ages'; there are age, country"),
        (("t.parquet", "--scheduler", "x:1"), "--scheduler goes with --engine dask"),
        (("odd.parquet",), "odd.parquet: column 'when' has the type date32"),
    ],
)
def test_errors_name_the_remedy(command, tmp_path, table, arguments, told):
    pq.write_table(table, tmp_path / "t.parquet")
    pq.write_table(pa.table({"when": pa.array([1], pa.date32())}), tmp_path / "odd.parquet")
    (tmp_path / "late.csv").write_text("a\n" + "1\n" * 600_000 + "x\n")
    done = command("reference", "build", *arguments, "--model", "m", "-o", "o.parquet")
    assert done.exit_code in (1, 2)
    assert told in done.stderr
    assert "secret" not in done.stderr
    assert len(done.stderr.splitlines()) < 12  # pyarrow names each place where libjvm is not
    assert not (tmp_path / "o.parquet").exists()
