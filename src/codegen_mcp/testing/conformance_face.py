"""The tools and resources that the official conformance suite calls, beside the real ones.

The suite asks for some by name (``test_simple_text``, ``test://static-text``). They are answered by
handlers of their own through the same server, so that what is judged is how results, errors,
progress and resources travel.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import Mapping, Sequence

from mcp_types import (
    AudioContent,
    BlobResourceContents,
    ContentBlock,
    EmbeddedResource,
    ImageContent,
    ListResourcesResult,
    ListResourceTemplatesResult,
    ReadResourceResult,
    Resource,
    ResourceTemplate,
    TextResourceContents,
)

from codegen_mcp.coordinator.mcp.arguments import NoArguments
from codegen_mcp.coordinator.mcp.call import Call, Reply
from codegen_mcp.coordinator.mcp.catalogue import Catalogue, FaceTool, make_catalogue
from codegen_mcp.coordinator.mcp.resources import TEMPLATES, Resources
from codegen_mcp.coordinator.mcp.server import Face
from codegen_mcp.core.errors import WrongState
from codegen_mcp.tools.base import ToolModel, ToolSpec

PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4"
    "2mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)
"""One red pixel."""
WAV = base64.b64encode(
    b"RIFF\x24\x00\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00\x40\x1f\x00\x00\x80\x3e\x00\x00"
    b"\x02\x00\x10\x00data\x00\x00\x00\x00"
).decode()
"""Silence of no length."""
_TEMPLATE = re.compile(r"test://template/([^/]+)/data")


class Said(ToolModel):
    """What every one of these answers."""

    said: str


def conformance_face() -> Face:
    """Return the real tools and resources, and the suite's."""
    return Face(
        catalogue=Catalogue([*make_catalogue().tools, *_tools()]), resources=ConformanceResources()
    )


class ConformanceResources(Resources):
    """Knows ``test://`` beside what the real one knows."""

    templates = ListResourceTemplatesResult(
        resource_templates=[
            *TEMPLATES.resource_templates,
            ResourceTemplate(
                name="test-template",
                uri_template="test://template/{id}/data",
                mime_type="application/json",
            ),
        ]
    )

    async def list_page(self, call: Call, cursor: str) -> ListResourcesResult:
        """List the two, then the real ones."""
        if cursor:
            return await super().list_page(call, "" if cursor == "real" else cursor)
        return ListResourcesResult(
            resources=[
                Resource(name="static-text", uri="test://static-text", mime_type="text/plain"),
                Resource(name="static-binary", uri="test://static-binary", mime_type="image/png"),
            ],
            next_cursor="real",
        )

    async def read(self, call: Call, uri: str) -> ReadResourceResult:
        """Read one."""
        if uri == "test://static-text":
            text = "This is the content of the static text resource."
            return _text(uri, "text/plain", text)
        if uri == "test://static-binary":
            blob = BlobResourceContents(uri=uri, mime_type="image/png", blob=PNG)
            return ReadResourceResult(contents=[blob])
        if match := _TEMPLATE.fullmatch(uri):
            data = {"id": match[1], "templateTest": True, "data": f"Data for ID: {match[1]}"}
            return _text(uri, "application/json", json.dumps(data))
        return await super().read(call, uri)


def _text(uri: str, kind: str, text: str) -> ReadResourceResult:
    return ReadResourceResult(contents=[TextResourceContents(uri=uri, mime_type=kind, text=text)])


def _tools() -> Sequence[FaceTool]:
    image = ImageContent(data=PNG, mime_type="image/png")
    blocks: Mapping[str, tuple[ContentBlock, ...]] = {
        "test_simple_text": (),
        "test_logging_tool": (),
        "test_streaming_elicitation": (),
        "test_image_content": (image,),
        "test_audio_content": (AudioContent(data=WAV, mime_type="audio/wav"),),
        "test_embedded_resource": (
            _embedded("test://embedded-resource", "text/plain", "An embedded resource."),
        ),
        "test_multiple_content_types": (
            image,
            _embedded("test://mixed-content-resource", "application/json", '{"test":"data"}'),
        ),
    }
    tools = [_tool(name, blocks=shown) for name, shown in blocks.items()]
    return [
        *tools,
        FaceTool(_spec("test_error_handling"), _fail),
        FaceTool(_spec("test_tool_with_progress"), _progress),
    ]


def _spec(name: str) -> ToolSpec:
    return ToolSpec(
        name=name,
        title=name,
        description="Called by the conformance suite.",
        arguments=NoArguments,
        result=Said,
        read_only=True,
    )


def _tool(name: str, blocks: tuple[ContentBlock, ...]) -> FaceTool:
    async def answer(call: Call, arguments: ToolModel) -> Reply:
        text = "This is a simple text response for testing."
        return Reply(value=Said(said=text), text=text, blocks=blocks)

    return FaceTool(_spec(name), answer)


def _embedded(uri: str, kind: str, text: str) -> EmbeddedResource:
    return EmbeddedResource(resource=TextResourceContents(uri=uri, mime_type=kind, text=text))


async def _fail(call: Call, arguments: ToolModel) -> Reply:
    raise WrongState("This tool intentionally returns an error for testing")


async def _progress(call: Call, arguments: ToolModel) -> Reply:
    for step in ("first", "second", "third"):
        call.progress.stage(step)
        await asyncio.sleep(call.config.progress_interval_s * 1.2)
    return Reply(value=Said(said="done"), text="done")
