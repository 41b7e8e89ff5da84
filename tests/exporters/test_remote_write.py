"""Remote write: requests as generated messages read them, and what is done about a receiver's answers."""

from __future__ import annotations

import asyncio
import math
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import trustme
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.unknown_fields import UnknownFieldSet
from grpc_tools import protoc
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tidegauge.config import ConfigError, RemoteWrite
from tidegauge.exporters import remote_write
from tidegauge.exporters.exposition import Format, render
from tidegauge.exporters.remote_write import SAMPLES, RemoteWriter, target_labels
from tidegauge.exporters.samples import samples
from tidegauge.exporters.write_request import write_request
from tidegauge.metric import (
    Exemplar,
    ExponentialHistogram,
    Histogram,
    Kind,
    Metric,
    Number,
    Summary,
)
from tidegauge.snapshot import Snapshots
from tidegauge.telemetry import Telemetry
from tidegauge.units import Duration, Size
from tidegauge.watched import FileWatch

PROTO = Path(__file__).parents[2] / "proto"
TIME_MS = 1_800_000_000_123
SEEN = Exemplar(0.3, 10**18, (("trace_id", "ab" * 16), ("span_id", "cd" * 8)))
WHO = (("model", "fraud"), ("version", ""))
METRICS = (
    Metric("queue", Kind.GAUGE, "By", "In use.", (Number((), 5.0), Number((("le", "x"),), math.inf))),
    Metric("sent", Kind.COUNTER, "{item}", "Sent.", (Number(WHO, 7.0, 10**18, SEEN), Number((), -1.0))),
    Metric("explicit", Kind.HISTOGRAM, "s", "", (Histogram(WHO, (0.1, 1.0), (3, 0, 2), 4.5),), 10**18),
    Metric(
        "latency",
        Kind.EXPONENTIAL_HISTOGRAM,
        "s",
        "Durations.",
        (
            ExponentialHistogram(
                WHO, 2, -9, (1, 0, 0, 0, 5), 2, 1.5, 0.0, 0.4, start_ns=10**18, exemplars=(SEEN,)
            ),
        ),
    ),
    Metric("told", Kind.SUMMARY, "s", "", (Summary((), 3, 1.25, ((0.5, 0.4), (0.99, 0.5))),), received=True),
)


@pytest.fixture(scope="session")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The message classes that protoc makes of the two .proto files, by version."""
    compiled = tmp_path_factory.mktemp("proto") / "write.bin"
    files = ("remote_write.proto", "remote_write_2.proto")
    assert protoc.main(["protoc", f"-I{PROTO}", f"--descriptor_set_out={compiled}", *files]) == 0
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(compiled.read_bytes()).file:
        pool.Add(file)
    names = {"1.0": "prometheus.WriteRequest", "2.0": "io.prometheus.write.v2.Request"}
    return {
        version: message_factory.GetMessageClass(pool.FindMessageTypeByName(name))
        for version, name in names.items()
    }


def size_of(block: bytes) -> int:
    """What a snappy block says of its size when inflated."""
    size, shift = 0, 0
    for byte in block:
        size |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            break
    return size


def read(kinds: dict[str, Any], body: bytes, version: str) -> Any:
    plain = pa.Codec("snappy").decompress(body, size_of(body), asbytes=True)
    message = kinds[version].FromString(plain)
    assert not unknown(message)
    return message


def unknown(message: Any) -> bool:
    if len(UnknownFieldSet(message)):
        return True
    inner = [value for field, value in message.ListFields() if field.message_type is not None]
    return any(unknown(one) for value in inner for one in (value if hasattr(value, "__len__") else [value]))


def pairs(series: Any, message: Any) -> dict[str, str]:
    """The labels of a series of either version, which are in order and named once."""
    if hasattr(series, "labels"):
        found = [(label.name, label.value) for label in series.labels]
    else:
        words = [message.symbols[place] for place in series.labels_refs]
        found = list(zip(words[::2], words[1::2], strict=True))
    assert found == sorted(found)
    assert len(dict(found)) == len(found)
    assert all(value for _, value in found)
    return dict(found)


def told(message: Any) -> dict[tuple[tuple[str, str], ...], float]:
    """The plain samples."""
    found = {}
    for series in message.timeseries:
        for sample in series.samples:
            assert sample.timestamp == TIME_MS
            found[tuple(sorted(pairs(series, message).items()))] = sample.value
    return found


versions = pytest.mark.parametrize("version", ["1.0", "2.0"])


@versions
def test_the_series_are_those_of_the_page(kinds: dict[str, Any], version: Any) -> None:
    body = write_request(list(samples(METRICS, also={})), TIME_MS, version)
    page = render(METRICS, Format.OPENMETRICS).body.decode()
    wanted = {
        tuple(sorted({"__name__": sample.name, **sample.labels}.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }
    assert told(read(kinds, body, version)) == wanted
    assert len(wanted) > 40


@versions
def test_labels_of_the_target_are_added_where_a_series_has_none(kinds: dict[str, Any], version: Any) -> None:
    also = {"job": "tidegauge", "model": "other"}
    message = read(kinds, write_request(list(samples(METRICS, also=also)), TIME_MS, version), version)
    labels = [pairs(series, message) for series in message.timeseries]
    assert {one["job"] for one in labels} == {"tidegauge"}
    assert {one["model"] for one in labels if one["__name__"] == "sent_total"} == {"fraud"}
    assert {one["model"] for one in labels if one["__name__"] == "queue_bytes"} == {"other"}


@versions
def test_exponential_histograms_are_native_ones_where_that_is_asked_for(
    kinds: dict[str, Any], version: Any
) -> None:
    found = list(samples(METRICS, also={}, histograms=True))
    message = read(kinds, write_request(found, TIME_MS, version), version)
    [series] = [one for one in message.timeseries if one.histograms]
    [histogram] = series.histograms
    assert pairs(series, message) == {"__name__": "latency_seconds", "model": "fraud"}
    assert (histogram.count_int, histogram.sum, histogram.zero_count_int) == (8, 1.5, 2)
    assert (histogram.schema, histogram.timestamp) == (2, TIME_MS)
    assert [(span.offset, span.length) for span in histogram.positive_spans] == [(-8, 1), (3, 1)]
    assert list(histogram.positive_deltas) == [1, 4]
    assert series.exemplars[0].value == SEEN.value
    assert version == "1.0" or histogram.start_timestamp == 10**12


@versions
def test_exemplars_stand_on_the_counter_and_on_their_bucket(kinds: dict[str, Any], version: Any) -> None:
    message = read(kinds, write_request(list(samples(METRICS, also={})), TIME_MS, version), version)
    having = [series for series in message.timeseries if series.exemplars]
    assert [pairs(series, message)["__name__"] for series in having] == [
        "sent_total",
        "latency_seconds_bucket",
    ]
    for series in having:
        [exemplar] = series.exemplars
        assert (exemplar.value, exemplar.timestamp) == (SEEN.value, 10**12)
        assert pairs(exemplar, message) == dict(SEEN.attributes)


def test_metadata_and_start_times_are_told(kinds: dict[str, Any]) -> None:
    found = list(samples(METRICS, also={}))
    first = read(kinds, write_request(found, TIME_MS, "1.0"), "1.0")
    about = {one.metric_family_name: (one.type, one.help, one.unit) for one in first.metadata}
    assert about["sent_total"] == (1, "Sent.", "")
    assert about["queue_bytes"] == (2, "In use.", "bytes")
    second = read(kinds, write_request(found, TIME_MS, "2.0"), "2.0")
    for series in second.timeseries:
        words = second.symbols[series.metadata.help_ref], second.symbols[series.metadata.unit_ref]
        if pairs(series, second)["__name__"] == "sent_total":
            assert (series.metadata.type, *words) == (1, "Sent.", "")
            assert series.samples[0].start_timestamp == 10**12
        if pairs(series, second)["__name__"] == "queue_bytes":
            assert (series.metadata.type, *words) == (2, "In use.", "bytes")
            assert series.samples[0].start_timestamp == 0
    assert second.symbols[0] == ""


@versions
def test_series_that_have_ended_get_the_marker(kinds: dict[str, Any], version: Any) -> None:
    ended = [((("__name__", "a"),), False), ((("__name__", "b"),), True)]
    plain, native = read(kinds, write_request((), TIME_MS, version, ended), version).timeseries
    for value in (plain.samples[0].value, native.histograms[0].sum):
        assert struct.unpack("<Q", struct.pack("<d", value)) == (0x7FF0000000000002,)
    assert plain.samples[0].timestamp == native.histograms[0].timestamp == TIME_MS


class Receiver:
    """Keeps what it is sent, and answers as told: a status for each request, the last one for all others."""

    def __init__(
        self,
        *statuses: int,
        knows_2: bool = True,
        says: str = "",
        headers: tuple[tuple[str, str], ...] = (),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.serials: list[str] = []
        self.taken: list[tuple[dict[str, str], bytes]] = []
        self.requests = 0
        receiver = self

        class Answer(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = statuses[min(receiver.requests, len(statuses) - 1)] if statuses else 204
                receiver.requests += 1
                if tls is not None:
                    receiver.serials.append(self.connection.getpeercert()["serialNumber"])
                self.send_response(status)
                if status == 204:
                    receiver.taken.append((dict(self.headers), body))
                    if knows_2:
                        self.send_header("X-Prometheus-Remote-Write-Samples-Written", "1")
                answer = f"{says} {self.headers['Authorization']}".encode() if says else b""
                for name, value in headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Answer)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        scheme = "http" if tls is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_port}/api/v1/write"

    def __enter__(self) -> Receiver:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Scene:
    """A writer under way, and what it counts."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.snapshots, self.telemetry = Snapshots(), Telemetry()
        wanted = {"interval": Duration("20ms"), "timeout": Duration("2s")} | settings
        resource = {"service.name": "scorer", "service.instance.id": "pod-1"}
        self.writer = RemoteWriter(
            RemoteWrite(endpoint=url, **wanted), self.snapshots, self.telemetry, resource=resource, drain_s=3
        )

    def publish(self, value: float, name: str = "sent") -> None:
        metric = Metric(name, Kind.COUNTER, "{item}", "Sent.", (Number((), value),))
        self.snapshots.publish("test", (metric,))

    def exported(self) -> int:
        return self.telemetry.total("exported", exporter="remote_write")

    def dropped(self, reason: str) -> int:
        return self.telemetry.total("export.dropped", exporter="remote_write", reason=reason)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def series_of(kinds: dict[str, Any], receiver: Receiver) -> Iterator[tuple[str, float]]:
    for headers, body in receiver.taken:
        version = "2.0" if "v2" in headers["Content-Type"] else "1.0"
        message = read(kinds, body, version)
        for series in message.timeseries:
            yield pairs(series, message)["__name__"], series.samples[0].value


@versions
def test_headers_are_those_of_the_version_and_the_users(
    kinds: dict[str, Any], version: Any, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")

    async def scenario(receiver: Receiver) -> None:
        headers = {"X-Scope-OrgID": "team"}
        scene = Scene(receiver.url, version=version, headers=headers, bearer_token_file=str(token))
        scene.publish(1)
        async with scene.writer:
            await until(lambda: bool(receiver.taken))

    with Receiver() as receiver:
        asyncio.run(scenario(receiver))
    headers, body = receiver.taken[0]
    kind = "application/x-protobuf" + (";proto=io.prometheus.write.v2.Request" if version == "2.0" else "")
    assert (headers["Content-Type"], headers["Content-Encoding"]) == (kind, "snappy")
    assert headers["X-Prometheus-Remote-Write-Version"] == ("2.0.0" if version == "2.0" else "0.1.0")
    assert headers["User-Agent"].startswith("tidegauge/")
    assert (headers["X-Scope-OrgID"], headers["authorization"]) == ("team", "Bearer secret")
    message = read(kinds, body, version)
    labels = pairs(message.timeseries[0], message)
    assert labels == {"__name__": "sent_total", "job": "scorer", "instance": "pod-1"}


def test_what_is_there_at_the_end_is_written_and_ends(kinds: dict[str, Any]) -> None:
    """Also where the agent lives shorter than the interval."""

    async def scenario(receiver: Receiver) -> Scene:
        scene = Scene(receiver.url, interval=Duration("1h"))
        async with scene.writer:
            scene.publish(5)
        return scene

    with Receiver() as receiver:
        scene = asyncio.run(scenario(receiver))
    (first, value), (second, marker) = series_of(kinds, receiver)
    assert (first, value, second) == ("sent_total", 5.0, "sent_total")
    assert math.isnan(marker)
    assert scene.exported() == 2


def test_a_series_that_is_gone_gets_a_marker_once(kinds: dict[str, Any]) -> None:
    async def scenario(receiver: Receiver) -> None:
        scene = Scene(receiver.url)
        scene.publish(1, "old")
        async with scene.writer:
            await until(lambda: scene.exported() == 1)
            scene.publish(2, "new")
            await until(lambda: scene.exported() == 3)
            scene.publish(3, "new")
            await until(lambda: scene.exported() == 4)

    with Receiver() as receiver:
        asyncio.run(scenario(receiver))
    names = [(name, math.isnan(value)) for name, value in series_of(kinds, receiver)]
    assert names == [
        ("old_total", False),
        ("new_total", False),
        ("old_total", True),
        ("new_total", False),
        ("new_total", True),
    ]


@pytest.mark.parametrize("status", [500, 503, 429])
def test_what_has_no_time_is_tried_again(kinds: dict[str, Any], status: int) -> None:
    async def scenario(receiver: Receiver) -> Scene:
        scene = Scene(receiver.url, stale_markers=False)
        scene.publish(1)
        async with scene.writer:
            await until(lambda: scene.exported() == 1)
        return scene

    with Receiver(status, status, 204) as receiver:
        scene = asyncio.run(scenario(receiver))
    assert receiver.requests == 3
    assert list(series_of(kinds, receiver)) == [("sent_total", 1.0)]
    assert scene.telemetry.total("export.dropped") == 0


@pytest.mark.parametrize("status", [400, 401, 404, 302])
def test_what_is_refused_is_not_tried_again(status: int) -> None:
    async def scenario(receiver: Receiver) -> Scene:
        scene = Scene(receiver.url, stale_markers=False)
        scene.publish(1)
        async with scene.writer:
            await until(lambda: scene.dropped("rejected") == 1)
        return scene

    with Receiver(status) as receiver:
        scene = asyncio.run(scenario(receiver))
    assert (receiver.requests, scene.exported()) == (1, 0)


@pytest.mark.parametrize("silent", [True, False], ids=["takes it and says nothing", "415"])
def test_a_receiver_that_knows_only_the_first_version_is_given_that(
    kinds: dict[str, Any], silent: bool
) -> None:
    async def scenario(receiver: Receiver) -> Scene:
        scene = Scene(receiver.url, version="2.0", stale_markers=False)
        scene.publish(1)
        async with scene.writer:
            await until(lambda: scene.exported() == 1)
            scene.publish(2)
            await until(lambda: scene.exported() == 2)
        return scene

    with Receiver(*(() if silent else (415, 204)), knows_2=False) as receiver:
        asyncio.run(scenario(receiver))
    first = [(headers, body) for headers, body in receiver.taken if "v2" not in headers["Content-Type"]]
    assert [read(kinds, body, "1.0").timeseries[0].samples[0].value for _, body in first] == [1.0, 2.0]
    assert receiver.requests == 3


def test_what_waits_is_bounded_and_the_oldest_goes(kinds: dict[str, Any]) -> None:
    async def scenario(port: int) -> Scene:
        scene = Scene(f"http://127.0.0.1:{port}", queue_size=Size("600B"), stale_markers=False)
        async with scene.writer:
            for value in range(30):
                scene.publish(value)
                generation = scene.snapshots.latest().generation
                await until(lambda generation=generation: scene.writer._generation == generation)
            scene.writer.observe()
            usage = [
                point.value
                for metric in scene.telemetry.collect()
                if metric.name == "tidegauge.export.queue.usage"
                for point in metric.points
            ]
            assert 0 < usage[0] <= 600
            scene.writer._drain_s = 0
        return scene

    with Receiver() as receiver:
        port = int(receiver.url.split(":")[2].split("/")[0])
    scene = asyncio.run(scenario(port))
    assert scene.dropped("queue_full") > 0
    assert scene.dropped("queue_full") + scene.dropped("shutdown") == 30


def test_many_series_are_several_requests(kinds: dict[str, Any]) -> None:
    async def scenario(receiver: Receiver) -> None:
        scene = Scene(receiver.url)
        points = tuple(Number((("n", str(n)),), 1.0) for n in range(SAMPLES + 1))
        scene.snapshots.publish("test", (Metric("x", Kind.GAUGE, "", "", points),))
        async with scene.writer:
            await until(lambda: scene.exported() == SAMPLES + 1)

    with Receiver() as receiver:
        asyncio.run(scenario(receiver))
    sizes = [len(read(kinds, body, "1.0").timeseries) for _, body in receiver.taken]
    assert sizes == [SAMPLES, 1, SAMPLES, 1]  # and their ends


def test_files_that_cannot_be_read_are_told_at_the_start(tmp_path: Path) -> None:
    missing = str(tmp_path / "none")
    for setting in ("certificate", "client_certificate", "bearer_token_file"):
        with pytest.raises(ConfigError, match=f"exporters.remote_write.{setting}: {missing} cannot be read"):
            Scene("https://127.0.0.1:1", **{setting: missing})


def test_a_new_certificate_and_token_count_from_the_next_request_on(tmp_path: Path) -> None:
    ca = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(tls)
    ca.configure_trust(tls)
    tls.verify_mode = ssl.CERT_REQUIRED
    files = {name: tmp_path / name for name in ("certificate", "client_certificate", "client_key")}
    files["bearer_token_file"] = tmp_path / "token"
    ca.cert_pem.write_to_path(str(files["certificate"]))

    def issue(token: str) -> None:
        leaf = ca.issue_cert("agent.example.org")
        leaf.cert_chain_pems[0].write_to_path(str(files["client_certificate"]))
        leaf.private_key_pem.write_to_path(str(files["client_key"]))
        files["bearer_token_file"].write_text(token)

    async def scenario(receiver: Receiver) -> None:
        scene = Scene(receiver.url, **{name: str(path) for name, path in files.items()})
        watch = FileWatch([scene.writer.channel], scene.telemetry, interval_s=3600)
        scene.publish(1)
        async with scene.writer:
            await until(lambda: scene.exported() == 1)
            issue("the second token")
            await watch.look()
            scene.publish(2)
            await until(lambda: scene.exported() == 2)
            # Half of a rotation: what was there goes on.
            files["client_key"].write_text("no key")
            await watch.look()
            scene.publish(3)
            await until(lambda: scene.exported() == 3)
        assert scene.telemetry.total("reloads", outcome="taken") == 1
        assert scene.telemetry.total("reloads", outcome="refused") == 1

    issue("the first token")
    with Receiver(tls=tls) as receiver:
        asyncio.run(scenario(receiver))
    tokens = [headers["authorization"] for headers, _ in receiver.taken]
    assert tokens[:3] == ["Bearer the first token", "Bearer the second token", "Bearer the second token"]
    assert receiver.serials[0] != receiver.serials[1] == receiver.serials[2]


def test_a_wait_without_end_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_write, "LONGEST_S", 0.05)

    async def scenario(receiver: Receiver) -> None:
        scene = Scene(receiver.url)
        scene.publish(1)
        async with scene.writer:
            await until(lambda: bool(receiver.taken))

    with Receiver(429, 204, headers=(("Retry-After", "999999999"),)) as receiver:
        asyncio.run(scenario(receiver))


def test_a_receiver_that_says_the_token_again_does_not_put_it_into_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    token = tmp_path / "token"
    token.write_text("my-s3cret")

    async def scenario(receiver: Receiver) -> None:
        scene = Scene(receiver.url, bearer_token_file=str(token), headers={"X-Key": "other-key"})
        scene.publish(1)
        async with scene.writer:
            await until(lambda: scene.dropped("rejected") == 1)

    with Receiver(400, says="no entry: other-key,") as receiver:
        asyncio.run(scenario(receiver))
    assert "no entry: ***, Bearer ***" in caplog.text
    assert "my-s3cret" not in caplog.text


def test_the_last_snapshot_is_queued_behind_a_request_under_way(kinds: dict[str, Any]) -> None:
    """However much waits before it: what is dropped at the end is counted with it."""

    async def scenario(receiver: Receiver) -> Scene:
        scene = Scene(receiver.url, stale_markers=False)
        async with scene.writer:
            scene.publish(1)
            await until(lambda: receiver.requests > 2)
            scene.publish(2)
        return scene

    with Receiver(503) as receiver:
        scene = asyncio.run(scenario(receiver))
    assert scene.dropped("shutdown") == 2


def test_job_and_instance_are_those_that_a_scrape_would_set() -> None:
    assert target_labels({"service.name": "a"}) == {"job": "a"}
    assert target_labels({}) == {}
