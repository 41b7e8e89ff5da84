"""Flight's DoPut under load: full queues, clients that do not read or vanish, many at once, and memory."""

from __future__ import annotations

import gc
import json
import sys
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import flight

from tidegauge import config
from tidegauge.receivers.record_stream import RecordStream
from tidegauge.units import Size
from tidegauge.wire.arrow import DICTIONARY, flight_message, message_header

# Loads


def test_a_message_above_the_server_s_limit_ends_the_stream_only(agent_type: Any, arrow: Any) -> None:
    with agent_type(max_message="1MiB") as agent:
        schema, batch = arrow.stream([arrow.numbers(3)])
        outcome = agent.call([schema, batch, arrow.flight_data(b"", bytes(2**21))])
        assert outcome.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert agent.totals() == (3, 3, 0)
        agent.is_well()
        with pytest.raises(pa.ArrowInvalid, match="larger than max"):
            agent.put([arrow.numbers(2**18)])
        agent.is_well()


def test_a_batch_larger_than_the_queue_is_told_so(agent_type: Any, arrow: Any) -> None:
    with agent_type(queue_bytes=100_000) as agent:
        large, small = agent.put([arrow.numbers(12_500), arrow.numbers(3)])
        assert large["rejected_rows"] == 12_500
        assert large["reason"].endswith("is more than pipeline.queue_size; send smaller ones")
        assert small == arrow.accepted(3)
        assert agent.totals() == (12_503, 3, 12_500)
        assert agent.rejected("too_large") == 12_500


def test_a_full_queue_rejects_and_never_blocks(agent_type: Any, arrow: Any) -> None:
    batch = pa.record_batch({"x": np.arange(1000.0), "c": pa.array(["a"] * 1000).dictionary_encode()})
    with agent_type(queue_bytes=100_000) as agent:
        agent.sink.open.clear()
        answers = agent.put([batch] * 50)
        fitting = agent.totals()[1] // 1000
        assert 3 < fitting < 9
        why = "the agent's queue is full"
        full = {"accepted_rows": 0, "rejected_rows": 1000, "reason": why, "retry_after_s": 1}
        assert answers == [arrow.accepted(1000)] * fitting + [full] * (50 - fitting)
        assert agent.totals() == (50_000, fitting * 1000, (50 - fitting) * 1000)
        assert agent.rejected("queue_full") == (50 - fitting) * 1000
        # What there is no room for is not even read, or it would be found invalid.
        schema, dictionary, (header, body) = arrow.parts([batch])
        hostile = arrow.framed([schema, dictionary, (header, b"\x7f" * len(body))])
        assert agent.call(hostile).answers == [full]
        agent.sink.open.set()
        agent.eventually(lambda: agent.pipeline.queue_bytes == 0)
        assert agent.call(hostile).answers[0]["reason"].startswith("invalid")
        agent.is_well()


def test_dictionaries_keep_up_while_the_queue_is_full(agent_type: Any, arrow: Any) -> None:
    batches = [arrow.coded([f"{n} {'x' * 5000}"], *[0] * 100) for n in range(30)]
    with agent_type(queue_bytes=20_000, max_dictionary_size=Size("32KiB")) as agent:
        agent.sink.open.clear()
        with agent.client() as client:
            writer, results = client.do_put(flight.FlightDescriptor.for_path(*arrow.PATH), batches[0].schema)
            answers = []
            with writer:
                for batch in batches:
                    writer.write_batch(batch)
                    answers.append(json.loads(results.read().to_pybytes()))  # type: ignore[attr-defined]
                agent.sink.open.set()
                agent.eventually(lambda: agent.pipeline.queue_bytes == 0)
                writer.write_batch(batches[3])
                answers.append(json.loads(results.read().to_pybytes()))  # type: ignore[attr-defined]
        assert {answer["reason"] for answer in answers[5:-1]} == {"the agent's queue is full"}
        assert answers[-1] == arrow.accepted(100)
        last = agent.sink.batches[-1].rows.column(0).to_pylist()
        assert last == batches[3].column(0).to_pylist()


def test_the_queue_counts_what_small_batches_really_hold(arrow: Any) -> None:
    """A million batches of one row must not pass a limit of 64 MiB as 8 MB."""
    (schema, batch) = arrow.stream([arrow.numbers(1)])
    reader = RecordStream(flight_message(schema), config.RecordLimits())
    assert 1200 < reader.nbytes(len(batch)) < 2000


MANY = 3000


@pytest.mark.parametrize("window", [None, 65_535])
def test_a_client_that_never_reads_is_served(window: int | None, agent_type: Any, arrow: Any) -> None:
    options = () if window is None else (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", window))
    messages = arrow.stream([arrow.numbers(3)] * MANY)
    with agent_type() as agent:
        agent.sink.keep = False
        with grpc.insecure_channel(agent.address, options) as channel:
            call = channel.stream_stream(arrow.METHOD)(iter(messages), timeout=60)
            agent.eventually(lambda: agent.totals() == (3 * MANY, 3 * MANY, 0))
            # The call has an end for it, and the answers that the window and the agent had room for.
            answers = sum(1 for _ in call)
            assert call.code() is grpc.StatusCode.OK
            assert answers == MANY if window is None else 1024 < answers < MANY
        agent.is_well()


def test_a_stock_client_that_never_reads_is_served(agent_type: Any, arrow: Any) -> None:
    with agent_type() as agent, agent.client() as client:
        agent.sink.keep = False
        batch = arrow.numbers(3)
        writer, _ = client.do_put(flight.FlightDescriptor.for_path(*arrow.PATH), batch.schema)
        for _ in range(MANY):
            writer.write_batch(batch)
        writer.close()
        assert agent.totals() == (3 * MANY, 3 * MANY, 0)
        agent.is_well()


def test_a_client_that_vanishes_leaves_nothing_behind(agent_type: Any, arrow: Any) -> None:
    messages = arrow.stream([arrow.numbers(3)] * 1500)
    options = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_535))
    vanished = threading.Event()

    def never_ends() -> Iterator[bytes]:
        yield from messages
        vanished.wait(20)

    with agent_type() as agent:
        for times in range(1, 4):
            with grpc.insecure_channel(agent.address, options) as channel:
                call = channel.stream_stream(arrow.METHOD)(never_ends())
                agent.eventually(lambda times=times: agent.totals()[0] == 4500 * times)  # type: ignore[misc]
                assert agent.streams() > 0
            assert call.code() is grpc.StatusCode.CANCELLED
        vanished.set()
        agent.is_well()


def test_stopping_ends_an_idle_stream(agent_type: Any, arrow: Any) -> None:
    schema, batch = arrow.stream([arrow.numbers(3)])
    more = threading.Event()

    def messages() -> Iterator[bytes]:
        yield schema
        yield batch
        more.wait(20)

    agent = agent_type()
    with agent:
        channel = grpc.insecure_channel(agent.address)
        call = channel.stream_stream(arrow.METHOD)(messages())
        assert json.loads(next(call)[2:]) == arrow.accepted(3)
    # Leaving the block took the server's grace, or the test would hang.
    with pytest.raises(grpc.RpcError):
        next(call)
    assert call.code() is grpc.StatusCode.UNAVAILABLE
    more.set()
    channel.close()


def test_streams_beside_each_other_do_not_mix(agent: Any, arrow: Any) -> None:
    threads = []
    for number in range(6):
        batches = [arrow.coded([f"{number}"], *[0] * 10)] * 20
        threads.append(threading.Thread(target=agent.put, args=(batches, ("records", f"m{number}", ""))))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = agent.folded(1200)
    assert len(found) == 120
    for batch in found:
        assert set(batch.rows.column(0).to_pylist()) == {batch.identity.model[1:]}


@pytest.mark.parametrize("columns", [1, 50])
def test_large_batches_with_text_are_read_beside_the_loop(agent: Any, arrow: Any, columns: int) -> None:
    texts = pa.array([f"{number} {'x' * 30}" for number in range(40_000 // columns)])
    sent = pa.record_batch({f"x{number}": texts for number in range(columns)})
    assert sent.nbytes > 2**20
    assert agent.put([sent, sent]) == [arrow.accepted(len(sent))] * 2
    assert all(batch.rows.equals(sent) for batch in agent.folded(2 * len(sent)))


# Memory


def test_values_are_those_of_the_message_and_none_is_copied(arrow: Any) -> None:
    schema, *batches = arrow.stream([arrow.numbers(5000, columns=3)] * 2)
    reader = RecordStream(flight_message(schema), config.RecordLimits())
    before = pa.total_allocated_bytes()
    rows = [reader.read(flight_message(batch)) for batch in batches]
    assert pa.total_allocated_bytes() == before
    addresses = [column.buffers()[1].address for column in rows[0].columns]
    assert all(address % 8 == 0 for address in addresses)
    # Side by side, as in the one body: 5000 doubles each, padded to 64 bytes.
    assert np.diff(addresses).tolist() == [40_000, 40_000]
    assert rows[1].equals(arrow.numbers(5000, columns=3))


def test_nothing_piles_up_over_ten_thousand_batches(arrow: Any) -> None:
    schema, *messages = arrow.stream([arrow.coded(["red", "blue"], 0, 1), arrow.coded(["red", "green"], 1)])
    reader = RecordStream(flight_message(schema), config.RecordLimits())

    def some(times: int) -> None:
        for _ in range(times):
            for raw in messages:
                message = flight_message(raw)
                header = message_header(message)
                if header.kind == DICTIONARY:
                    reader.add_dictionary(header, message)
                else:
                    reader.read(message)

    some(1000)  # which fills the interpreter's own free lists
    gc.collect()
    blocks, arrow = sys.getallocatedblocks(), pa.total_allocated_bytes()
    some(5000)
    gc.collect()
    assert sys.getallocatedblocks() - blocks < 100
    assert pa.total_allocated_bytes() - arrow < 2**14
