"""What may be asked of the way out, where there is none, and what is said of it."""

import pytest

from codegen_mcp.core.errors import FieldNotSupported, WrongState
from codegen_mcp.egress.config import EgressConfig
from codegen_mcp.egress.host_network import HostDialer, HostResolver
from codegen_mcp.egress.patterns import parse_list
from codegen_mcp.egress.service import Egress, SessionEgress
from codegen_mcp.settings import Settings


def egress(*allow: str, unavailable: str = "") -> Egress:
    config = EgressConfig(allow=parse_list(allow, "worker", "EGRESS_ALLOW"))
    return Egress(config, {}, HostResolver(), HostDialer(), unavailable=unavailable)


def session(of: Egress, **facts) -> SessionEgress:
    values = {"user_id": "", "allow_network": False, "allow_hosts": (), **facts}
    return SessionEgress(of, directory=lambda: None, **values)


def ask(of: SessionEgress, **facts):
    return of.task(**{"allow_network": False, "allow_hosts": (), "secrets": (), **facts})


def test_without_a_list_there_is_no_way_out_and_asking_is_refused_by_name():
    closed = egress()
    assert closed.summary == "off"
    assert ask(session(closed)) is None
    for field, facts in (
        ("constraints.allow_network", {"allow_network": True}),
        ("constraints.allow_hosts", {"allow_hosts": ("a.b",)}),
        ("context.secrets", {"secrets": ("A",)}),
    ):
        with pytest.raises(FieldNotSupported, match="EGRESS_ALLOW") as caught:
            ask(session(closed), **facts)
        assert caught.value.metadata == {"field": field}


def test_where_the_backend_has_none_it_is_said_and_never_ignored():
    weak = egress("*", unavailable="this backend has none; use bubblewrap")
    assert weak.summary == "unavailable"
    with pytest.raises(WrongState, match="use bubblewrap") as caught:
        ask(session(weak), allow_network=True)
    assert caught.value.reason == "EGRESS_UNAVAILABLE"
    with pytest.raises(WrongState):
        weak.check_session(allow_network=True, allow_hosts=())
    with pytest.raises(WrongState):
        weak.check_session(allow_network=False, allow_hosts=("a.b",))


def test_a_task_has_the_network_only_when_it_or_its_session_asks():
    wide = egress("*")
    assert ask(session(wide)) is None
    assert ask(session(wide), allow_network=True) is not None
    assert ask(session(wide, allow_network=True)) is not None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("egress_allow", "https://example.com"),
        ("egress_allow", "a.b 127.1"),
        ("egress_internal", "*.corp:443"),
        ("egress_internal", "mirror.corp"),
        ("egress_internal", "mirror.corp:*"),
        ("egress_bytes", 0),
    ],
)
def test_a_setting_that_means_nothing_stops_the_start(name, value):
    with pytest.raises(ValueError, match=name):
        Settings(**{name: value})
