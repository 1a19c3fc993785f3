"""The worker's way out: what may be asked of it, and what a session keeps of it.

``Egress`` is one for a worker, ``SessionEgress`` one for a session, ``TaskEgress`` (task_egress.py)
one for a task. A list only ever narrows the one above it.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from codegen_mcp.core.errors import FieldNotSupported, InvalidRequest, WrongState
from codegen_mcp.egress.base import Dialer, Resolver
from codegen_mcp.egress.config import EgressConfig
from codegen_mcp.egress.connector import Connector
from codegen_mcp.egress.intercept import server_trust
from codegen_mcp.egress.patterns import AllowList, parse_list
from codegen_mcp.egress.placeholders import Placeholder, new_placeholder
from codegen_mcp.egress.rules import Rules
from codegen_mcp.egress.secrets import Secret
from codegen_mcp.egress.session_trust import SessionTrust
from codegen_mcp.egress.task_egress import TaskEgress

TRUST_DIRECTORY = "trust"
"""In a session's directory; bound into the sandbox where the worker has secrets."""
CLOSED = (
    "this worker has no way out to the network: its operator allowed no host. Start it with "
    "EGRESS_ALLOW, for example EGRESS_ALLOW='pypi.org files.pythonhosted.org'"
)
MAX_SECRETS = 32
"""Of one task."""


class Egress:
    """What a worker lets out.

    Args:
        config: Its allow list and bounds.
        secrets: By name.
        resolver: Names to addresses.
        dialer: Connects.
        unavailable: Why the sandboxes of this worker cannot have a way out; empty when they can.
    """

    def __init__(
        self,
        config: EgressConfig,
        secrets: Mapping[str, Secret],
        resolver: Resolver,
        dialer: Dialer,
        *,
        unavailable: str = "",
    ) -> None:
        self.config = config
        self.secrets = dict(secrets)
        self.connector = Connector(config, resolver, dialer)
        self._unavailable = unavailable

    @property
    def open(self) -> bool:
        """Whether there is any way out."""
        return bool(self.config.allow.patterns) and not self._unavailable

    @property
    def summary(self) -> str:
        """``off``, ``unavailable`` or ``allow-list``: what a session can get."""
        if not self.config.allow.patterns:
            return "off"
        return "unavailable" if self._unavailable else "allow-list"

    @cached_property
    def trust(self) -> ssl.SSLContext:
        """What servers are checked with where TLS is ended."""
        return server_trust(self.config)

    def check_open(self, field: str) -> None:
        """Refuse what needs a way out where there is none.

        Raises:
            FieldNotSupported: The operator allowed no host.
            WrongState: The sandboxes of this worker cannot hold it up (EGRESS_UNAVAILABLE).
        """
        if not self.config.allow.patterns:
            raise FieldNotSupported(
                f"{field} is not supported by this worker; {CLOSED}", metadata={"field": field}
            )
        if self._unavailable:
            raise WrongState(
                f"{field} cannot be had here: {self._unavailable}",
                reason="EGRESS_UNAVAILABLE",
                metadata={"field": field},
            )

    def narrowed(
        self, within: Sequence[AllowList], hosts: Sequence[str], owner: str, field: str
    ) -> AllowList:
        """Read a list of a session or a task; it must ask for no more than those above it have.

        Raises:
            InvalidRequest: A pattern is bad.
            WrongState: A pattern goes beyond (EGRESS_NOT_ALLOWED).
        """
        asked = parse_list(hosts, owner, field)
        for above in within:
            beyond = above.uncovered(asked)
            if beyond is not None:
                raise WrongState(
                    f"{field} has {str(beyond)!r}, which the {above.owner}'s allow list does not "
                    f"cover; a {owner} can only narrow it: ask for less, or have it added there",
                    reason="EGRESS_NOT_ALLOWED",
                    metadata={"field": field, "pattern": str(beyond)},
                )
        return asked

    def check_session(self, *, allow_network: bool, allow_hosts: Sequence[str]) -> None:
        """Check what a session asks for.

        Raises:
            FieldNotSupported, InvalidRequest, WrongState: see above.
        """
        if allow_network or allow_hosts:
            self.check_open("config.allow_network" if allow_network else "config.allow_hosts")
            self.narrowed([self.config.allow], allow_hosts, "session", "config.allow_hosts")


class SessionEgress:
    """What one session keeps: its list, its placeholders, its authority.

    Args:
        egress: The worker's.
        user_id: The session's.
        allow_network: Whether its tasks have the network without asking.
        allow_hosts: Its own list; empty is the worker's.
        directory: Returns its host directory.
    """

    def __init__(
        self,
        egress: Egress,
        *,
        user_id: str,
        allow_network: bool,
        allow_hosts: Sequence[str],
        directory: Callable[[], Path],
    ) -> None:
        self._egress = egress
        self._user_id = user_id
        self._always = allow_network
        self._lists = [egress.config.allow]
        if allow_hosts:
            self._lists.append(parse_list(allow_hosts, "session", "config.allow_hosts"))
        self._placeholders: dict[str, Placeholder] = {}
        self._trust = SessionTrust(egress.config, lambda: directory() / TRUST_DIRECTORY)

    def task(
        self, *, allow_network: bool, allow_hosts: Sequence[str], secrets: Sequence[str]
    ) -> TaskEgress | None:
        """Make the way out of a task; None when it has none.

        Raises:
            FieldNotSupported, InvalidRequest, WrongState: It asks for what it cannot have.
        """
        wanted = allow_network or (self._always and self._egress.open)
        if not wanted:
            self._refuse_without_network(allow_hosts, secrets)
            return None
        if allow_network:
            self._egress.check_open("constraints.allow_network")
        lists = list(self._lists)
        if allow_hosts:
            field = "constraints.allow_hosts"
            lists.append(self._egress.narrowed(lists, allow_hosts, "task", field))
        placeholders = [self._placeholder(name) for name in self._named(secrets)]
        return TaskEgress(
            connector=self._egress.connector,
            config=self._egress.config,
            rules=Rules(lists),
            placeholders=placeholders,
            trust=self._trust,
            server_trust=lambda: self._egress.trust,
        )

    def _refuse_without_network(self, hosts: Sequence[str], secrets: Sequence[str]) -> None:
        for field, value in (("constraints.allow_hosts", hosts), ("context.secrets", secrets)):
            if value:
                self._egress.check_open(field)
                raise InvalidRequest(
                    f"{field} is set and the task has no network; set constraints.allow_network, "
                    "or create the session with config.allow_network",
                    metadata={"field": field},
                )

    def _named(self, names: Sequence[str]) -> Sequence[str]:
        if len(names) > MAX_SECRETS:
            raise InvalidRequest(
                f"context.secrets has {len(names)} names; use at most {MAX_SECRETS}",
                metadata={"field": "context.secrets"},
            )
        for name in names:
            found = self._egress.secrets.get(name)
            if found is None or not found.for_user(self._user_id):
                raise InvalidRequest(
                    f"context.secrets has {name[:128]!r}, which this worker has not for this "
                    "session; its operator names secrets in the file EGRESS_SECRETS",
                    metadata={"field": "context.secrets", "secret": name[:128]},
                    reason="UNKNOWN_SECRET",
                )
        return list(dict.fromkeys(names))

    def _placeholder(self, name: str) -> Placeholder:
        """What stands for a secret in this session; the same in all its tasks."""
        found = self._placeholders.get(name)
        if found is None:
            found = self._placeholders[name] = new_placeholder(self._egress.secrets[name])
        return found
