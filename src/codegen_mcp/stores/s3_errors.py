"""What obstore raises, in our words."""

from __future__ import annotations

import re

from obstore.exceptions import AlreadyExistsError, BaseError

from codegen_mcp.core.errors import (
    AlreadyExists,
    NotFound,
    StoreUnavailable,
    WorkerError,
)

EXPECTED = (BaseError, FileNotFoundError, TimeoutError)
"""Everything that a request may raise: obstore's tree, and what it takes from Python's."""
# What obstore says of a request that it sent once and got no answer to.
_LOST = re.compile(r" in [0-9.]+\S+ - HTTP error")
_CODE = re.compile(r"<Code>([A-Za-z0-9]{1,60})</Code>")
_LONGEST = 300
_FIXES = {
    "NoSuchBucket": "make the bucket, or correct its name",
    "AccessDenied": "let this access key read, write, list and delete there",
    "InvalidAccessKeyId": "correct AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "correct AWS_SECRET_ACCESS_KEY and AWS_REGION",
    "RequestTimeTooSkewed": "correct this machine's clock",
}


class AnswerLost(StoreUnavailable):
    """A request was sent and the connection broke: done or not. Not tried again yet."""

    reason = "STORE_ANSWER_LOST"


def translate(error: Exception, store: str, key: str) -> WorkerError:
    """Say what a failed request means for an object (or a list, with ``key`` empty)."""
    text = str(error)
    found = _CODE.search(text)
    code = found[1] if found else ""
    if isinstance(error, FileNotFoundError) and code != "NoSuchBucket":
        return NotFound(f"there is no object {key!r}")
    if isinstance(error, AlreadyExistsError):
        return AlreadyExists(f"there is an object {key!r} already")
    if isinstance(error, TimeoutError):
        return StoreUnavailable(f"the object store {store!r} did not answer in time; try again")
    kind = AnswerLost if _LOST.search(text) else StoreUnavailable
    # The rest of the text is the answer's body and a dump of obstore's own state.
    what = code or text.partition("<?xml")[0].partition("\n")[0][:_LONGEST].rstrip(": ")
    fix = _FIXES.get(code, "see to the service and the way to it, then try again")
    return kind(f"the object store {store!r} cannot be used: {what}; {fix}")
