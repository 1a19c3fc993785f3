from __future__ import annotations

import json

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from codegen_mcp.core import errors
from codegen_mcp.server.status import (
    MAX_TEXT_BYTES,
    STATUS,
    code_of,
    cut,
    details_json,
    failure_of,
    trailers,
)


def every(kind: type[errors.WorkerError]) -> list[type[errors.WorkerError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in every(child))]


def test_every_error_has_a_status_of_its_own_line():
    internal = {kind for kind in every(errors.WorkerError) if code_of(kind("x")).name == "INTERNAL"}
    assert internal == {errors.WorkerError}


def test_every_line_of_the_table_is_an_error_of_the_tree():
    assert set(STATUS) <= set(every(errors.WorkerError))


def test_reasons_are_told_apart():
    kinds = [kind for kind in every(errors.WorkerError) if kind.__module__ == errors.__name__]
    assert len({kind.reason for kind in kinds}) == len(kinds)


def test_a_new_subclass_is_as_its_parent():
    class Odd(errors.PathEscape):
        pass

    assert code_of(Odd("x")) is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("error", [ValueError("token=abc"), errors.WorkerError("token=abc")])
def test_a_fault_of_ours_tells_nothing_but_an_id(error):
    failure = failure_of(error)
    assert failure.code is grpc.StatusCode.INTERNAL
    assert "abc" not in failure.message
    assert failure.error_id in failure.message
    assert json.loads(details_json(failure))["error_id"] == failure.error_id


def test_the_largest_error_fits_into_the_trailers_that_clients_take():
    error = errors.Full(
        "☃" * 10_000, retry_after_s=1.25, metadata={f"k{n}": "☃" * 5000 for n in range(50)}
    )
    failure = failure_of(error)
    sent = trailers(failure, "req_1")
    rich = status_pb2.Status.FromString(dict(sent)["grpc-status-details-bin"])  # type: ignore[arg-type]
    retry = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(retry) for detail in rich.details)
    assert (retry.retry_delay.seconds, retry.retry_delay.nanos) == (1, 250_000_000)
    percent_encoded = 3 * len(failure.message.encode())
    base64_encoded = len(rich.SerializeToString()) * 4 // 3
    assert percent_encoded + base64_encoded < 8192


@pytest.mark.parametrize("text", ["", "x", "é" * MAX_TEXT_BYTES, "a\ud800b", "x" * 5000])
def test_a_text_is_cut_at_a_character_and_always_valid(text):
    short = cut(text, MAX_TEXT_BYTES)
    assert len(short.encode()) <= MAX_TEXT_BYTES
    assert len(text) > 100 or short == text.encode("utf-8", "backslashreplace").decode()
