from __future__ import annotations

import pytest

from codegen_mcp.languages.python.index_rules import (
    EgressRules,
    Refused,
    is_public,
    parse_origin,
)
from codegen_mcp.languages.python.packages import Index

INDEX = Index.parse("http://127.0.0.1:3141/simple")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "::1",
        "fe80::1%eth0",
        "fd00::1",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "2002:a9fe:a9fe::",
        "ff02::1",
    ],
)
def test_private_and_metadata_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1"])
def test_addresses_of_the_open_internet_are(address: str) -> None:
    assert is_public(address)


async def test_the_index_is_allowed_wherever_it_is() -> None:
    assert await EgressRules(INDEX).resolve("127.0.0.1", 3141) == ["127.0.0.1"]


async def test_another_port_or_host_is_refused() -> None:
    rules = EgressRules(INDEX)

    for host, port in (("127.0.0.1", 22), ("169.254.169.254", 80), ("localhost", 3141)):
        with pytest.raises(Refused, match="neither the package index nor"):
            await rules.resolve(host, port)


async def test_a_linked_server_must_be_public_or_the_indexs_own_address_and_port() -> None:
    rules = EgressRules(INDEX)
    rules.allow_linked({("localhost", 3141), ("localhost", 22), ("169.254.169.254", 80)})

    assert await rules.resolve("localhost", 3141) == ["127.0.0.1"]
    for host, port in (("localhost", 22), ("169.254.169.254", 80)):
        with pytest.raises(Refused, match="private or reserved"):
            await rules.resolve(host, port)


async def test_a_server_that_the_operator_names_is_exempt() -> None:
    rules = EgressRules(INDEX, ["127.0.0.1:8080"])

    assert await rules.resolve("127.0.0.1", 8080) == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("value", "origin"),
    [
        ("files.example", ("files.example", 443)),
        ("Files.example:80", ("files.example", 80)),
        ("[::1]:8080", ("::1", 8080)),
    ],
)
def test_servers_are_named_by_host_and_port(value: str, origin: tuple[str, int]) -> None:
    assert parse_origin(value) == origin
