"""`exposure_warning` says what other machines can do to a server, and what prevents it."""

from __future__ import annotations

from treadle.server.address import exposure

_ELSEWHERE = (
    "listen on 127.0.0.1 or a unix: socket ({flag}), publish a container's port on "
    "127.0.0.1, or let a firewall, a NetworkPolicy or a proxy that knows your users decide who "
    "calls"
)
_TLS = "give --tls-cert-file and --tls-key-file"
_CALLERS = "give --callers-file (`treadle-server token create` writes it)"


def exposure_warning(
    address: str, tls: bool, client_ca_file: str, callers: bool, flag: str = "--address"
) -> str:
    """Returns a warning for the log; '' if other machines can do nothing that they should not.

    Args:
        address: The address at which the server is listening.
        tls: Whether it speaks TLS.
        client_ca_file: The authorities of client certificates; empty: clients need none.
        callers: Whether only callers of the callers file may call.
        flag: The flag that gave the address.
    """
    who = exposure(address)
    elsewhere = _ELSEWHERE.format(flag=flag)
    if not who or (tls and callers):
        return ""
    if callers:
        return (
            f"{who} may read tokens and texts on their way: the server has no encryption. "
            f"To prevent that, {_TLS}, or {elsewhere}"
        )
    can = "may read, train and delete every model"
    if client_ca_file:
        return (
            f"everybody with a certificate of {client_ca_file} {can}: the server has no callers. "
            f"To say who may do what, {_CALLERS}, or {elsewhere}"
        )
    if tls:
        return f"{who} {can}: the server has no authentication. To prevent that, {_CALLERS}, " + (
            f"or --tls-client-ca-file, or {elsewhere}"
        )
    return (
        f"{who} {can}: the server has no authentication and no encryption. "
        f"To prevent that, {_CALLERS} and {_TLS}, or {elsewhere}"
    )
