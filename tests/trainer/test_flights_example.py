"""examples/flights.py on a source of three flights."""

import importlib.util
import zipfile
from pathlib import Path
from types import ModuleType

import polars as pl
import pytest

SOURCE = Path(__file__).parents[2] / "examples" / "flights.py"

FLIGHTS = """\
year,month,day,dep_time,sched_dep_time,dep_delay,arr_time,sched_arr_time,arr_delay,carrier,flight,\
tailnum,origin,dest,air_time,distance,hour,minute,time_hour
2013,1,31,2355,2350,5,430,440,1,B6,1,N1,JFK,LAX,330,2475,23,50,2013-02-01T04:00:00Z
2013,1,1,517,515,2,830,819,11,UA,2,N2,EWR,IAH,227,1400,5,15,2013-01-01T10:00:00Z
2013,1,2,NA,600,NA,NA,700,NA,UA,3,N2,EWR,IAH,NA,1400,6,0,2013-01-02T11:00:00Z
2013,1,1,540,540,0,850,855,3,AA,4,N9,JFK,BQN,180,1576,5,40,2013-01-01T10:00:00Z
"""
WEATHER = """\
origin,year,month,day,hour,temp,time_hour
EWR,2013,1,1,5,39.02,2013-01-01T10:00:00Z
EWR,2013,1,1,5,99.99,2013-01-01T10:00:00Z
JFK,2013,1,31,23,NA,2013-02-01T04:00:00Z
"""
PLANES = "tailnum,year,manufacturer,seats\nN1,NA,AIRBUS,200\nN2,1999,BOEING,149\n"
AIRPORTS = "faa,name,tz\nLAX,Los Angeles,-8\nIAH,Houston,-6\n"


@pytest.fixture
def flights() -> ModuleType:
    spec = importlib.util.spec_from_file_location("flights_example", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    directory.mkdir()
    with zipfile.ZipFile(directory / "flights.csv.zip", "w") as archive:
        archive.writestr("flights.csv", FLIGHTS)
    for name, text in (("weather", WEATHER), ("planes", PLANES), ("airports", AIRPORTS)):
        (directory / f"{name}.csv").write_text(text)
    return directory


def test_flights_that_arrived_are_joined_with_weather_planes_and_time_zones(
    flights: ModuleType, source: Path
) -> None:
    frame = flights.flights_frame(flights.read_source(source))
    assert frame["time"].dtype == pl.Datetime("ms")
    columns = ["carrier", "sched_dep_min", "sched_block", "temp", "manufacturer", "plane_year"]
    assert frame.select(pl.col("time").dt.to_string("%d %H:%M"), *columns).rows() == [
        ("01 05:15", "UA", 315.0, 184.0 + 60.0, 39.02, "BOEING", 1999.0),
        ("01 05:40", "AA", 340.0, None, None, None, None),
        ("31 23:50", "B6", 1430.0, (280 - 1430 + 180) % 1440, None, "AIRBUS", None),
    ]
    assert set(frame.columns) == {"time", "air_time", *flights.NUMERIC, *flights.CATEGORICAL}


def test_the_wrong_number_of_flights_is_an_error_and_writes_nothing(
    flights: ModuleType, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.parquet"
    assert flights.main([str(out), "--source", str(source)]) == 1
    assert "gave 3 flights, expected 327,346" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [source]


def test_a_file_that_is_built_is_not_built_again(
    flights: ModuleType,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(flights, "ROWS", 3)
    out = tmp_path / "deep" / "out.parquet"
    assert flights.main([str(out), "--source", str(source)]) == 0
    assert flights.main([str(out), "--source", str(tmp_path / "nowhere")]) == 0
    assert "is there already" in capsys.readouterr().err


def test_an_archive_that_is_another_one_is_not_read(
    flights: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / flights.ARCHIVE).write_bytes(b"something else")
    assert flights.main([str(tmp_path / "out.parquet"), "--source", str(tmp_path)]) == 1
    assert "has sha256" in capsys.readouterr().err


def test_a_source_without_a_file_names_it(
    flights: ModuleType, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "planes.csv").unlink()
    assert flights.main([str(tmp_path / "out.parquet"), "--source", str(source)]) == 1
    assert "has no planes.csv" in capsys.readouterr().err
