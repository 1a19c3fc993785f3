"""How far a server may be reached, given whom it asks."""

from __future__ import annotations

from ipaddress import ip_address

from codegen_mcp.core.errors import InvalidRequest


def is_local(host: str) -> bool:
    """Whether only this machine reaches what is bound there: 127/8, ::1 and Unix sockets."""
    if host == "localhost" or host.startswith("unix:"):
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_reach(host: str, *, asks: bool, insecure_no_auth: bool) -> None:
    """Refuse to listen beyond this machine without asking callers, unless that was said aloud.

    Raises:
        InvalidRequest: As said; names what to do.
    """
    if not is_local(host) and not asks and not insecure_no_auth:
        raise InvalidRequest(
            f"host {host!r} can be reached from other machines, and callers are not "
            "authenticated: whoever reaches it runs code. Bind 127.0.0.1, ask for tokens "
            "(AUTH_TOKENS and 'codegen-mcp token new'; AUTH_JWKS; AUTH_CERTIFICATES), or accept "
            "the risk with --insecure-no-auth"
        )


def reach_lines(host: str, *, asks: bool, tls: bool) -> list[str]:
    """Say at the start who may call, and what the way there does not hide."""
    if asks:
        if tls or is_local(host):
            return ["access: callers must show a token or certificate"]
        return [
            "access: callers must show a token or certificate; WARNING without TLS it can be read "
            f"on the way to {host} (TLS_CERT, TLS_KEY, or a proxy that ends TLS before it)"
        ]
    if is_local(host):
        return [f"access: no token is asked for; every user of this machine who reaches {host} may"]
    return [f"WARNING anybody who reaches {host} may run code: no authentication"]
