from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codegen_mcp.core.errors import AlreadyExists, NotFound
from codegen_mcp.stores.base import ObjectStore
from codegen_mcp.stores.registry import open_store

KEYS = ("a/b", "a/c/d", "a.b", "a-b/c", "a/c.d", "b", "A/b")
keys = st.sampled_from(KEYS)
steps = st.one_of(
    st.tuples(st.just("put"), keys, st.binary(max_size=8)),
    st.tuples(st.just("get"), keys, st.tuples(st.integers(0, 9), st.none() | st.integers(0, 9))),
    st.tuples(st.just("list"), st.sampled_from(("", "a", "a/", "a/c", "b", "z")), st.none()),
    st.tuples(st.just("delete"), keys, st.none()),
)


async def agree(store: ObjectStore, model: dict[str, bytes], step: tuple) -> None:
    act, key, given = step
    if act == "put":
        if key in model:
            with pytest.raises(AlreadyExists):
                await store.put_bytes(key, given)
        else:
            await store.put_bytes(key, given)
            model[key] = given
    elif act == "get":
        offset, length = given
        read = (
            [piece async for piece in store.get(key, offset=offset, length=length)]
            if (key in model)
            else []
        )
        if key in model:
            end = None if length is None else offset + length
            assert b"".join(read) == model[key][offset:end]
        else:
            with pytest.raises(NotFound):
                await store.stat(key)
    elif act == "list":
        listed = [(one.key, one.size) async for one in store.list(key)]
        assert listed == sorted((k, len(v)) for k, v in model.items() if k.startswith(key))
    else:
        assert await store.delete(key) == (model.pop(key, None) is not None)


@pytest.mark.parametrize("kind", ["memory", "local"])
@settings(max_examples=20, deadline=None)
@given(taken=st.lists(steps, max_size=30))
def test_a_store_is_a_dictionary_that_refuses_to_overwrite(kind: str, taken: list[tuple]) -> None:
    async def run() -> None:
        model: dict[str, bytes] = {}
        with tempfile.TemporaryDirectory() as directory:
            address = "memory:" if kind == "memory" else str(Path(directory) / "objects")
            async with open_store(address) as store:
                for step in taken:
                    await agree(store, model, step)
                await agree(store, model, ("list", "", None))

    asyncio.run(run())
