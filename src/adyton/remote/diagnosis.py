"""Why a server cannot be reached or is not trusted, in our words: from what gRPC says, and from a look at what is there.

`REASONS` is a table: the first row whose mark is in gRPC's details, and whose `secure` is that of the address, words the error. A row's
function gets a `Case`; it may look at the server once.
"""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from adyton.errors import AdytonError, UnauthenticatedError, UnreachableError
from adyton.remote.address import TLS, Address
from adyton.remote.probe import Seen

NO_SUCH_NAME = "does not match SSL server name"  # the certificate holds, but is not for this server


@dataclass(frozen=True)
class Case:
    """A connection that failed. `look`: what answers at the address, asked for when it is needed."""

    address: Address
    tls: TLS
    details: str
    look: Callable[[], Seen]
    now: dt.datetime

    def unreachable(self, why: str) -> AdytonError:
        """Nobody there, or nobody that speaks as we do."""
        return UnreachableError(f"cannot reach {self.address.target}: {why}")

    def untrusted(self, why: str) -> AdytonError:
        """Its certificate does not prove that it is the server that was asked for. Nothing was sent to it."""
        return UnreachableError(f"{self.address.target} is not trusted: {why}")

    @functools.cached_property
    def seen(self) -> Seen:
        """What the look has found."""
        return self.look()

    @property
    def authority(self) -> str:
        """What the server's certificate was judged by."""
        return f"the CA of --ca ({self.tls.ca})" if self.tls.ca else "a public CA, which is what counts without --ca"


def explain(case: Case) -> AdytonError:
    """The error to raise."""
    return _reason(case.details, secure=case.address.secure).words(case)


def has_waited(details: str, *, secure: bool) -> bool:
    """Whether gRPC has waited for a peer that says nothing, so that whoever asked has no patience left for a long look."""
    return _reason(details, secure=secure).words is _silent


def _reason(details: str, *, secure: bool) -> Reason:
    for reason in REASONS:
        if reason.mark in details and reason.secure in (None, secure):
            return reason
    raise AssertionError("the last row fits every case")


def _refused(case: Case) -> AdytonError:
    return case.unreachable("nothing listens there. Is the server running, and is it this port?")


def _no_such_name(case: Case) -> AdytonError:
    return case.unreachable(f"there is no host of that name ({case.address.host}). Is it written right?")


def _no_way(case: Case) -> AdytonError:
    return case.unreachable(
        "no packet gets there and back. Is the address right, and does a firewall let the port through?"
    )


def _proxied(case: Case) -> AdytonError:
    answer = case.details.rpartition("HTTP proxy returned ")[2]
    return case.unreachable(
        f"the HTTP proxy that the environment names (https_proxy, http_proxy) does not let us through: {answer}. "
        "Have it allow this port, or name the host in no_proxy"
    )


def _silent(case: Case) -> AdytonError:
    if not case.seen.connected:
        return _no_way(case)
    if not case.address.secure and case.seen.tls:
        return _wants_tls(case)
    return case.unreachable(
        "something takes the connection, but says nothing. Is it an adyton server, and is it alive?"
    )


def _stands_still(case: Case) -> AdytonError:
    return case.unreachable(
        "it took the connection, and then said nothing for seconds. Was it stopped, or the line cut?"
    )


def _plaintext(case: Case) -> AdytonError:
    return case.unreachable(
        f"what answers there does not speak TLS. Write grpc://{case.address.target} if it is an adyton server without TLS"
    )


def _wants_tls(case: Case) -> AdytonError:
    return case.unreachable(f"the server there wants TLS. Write grpcs://{case.address.target}")


def _no_http2(case: Case) -> AdytonError:
    return case.unreachable("what answers there is no adyton server. Is it the right port?")


def _closed_plaintext(case: Case) -> AdytonError:
    if case.seen.tls:
        return _wants_tls(case)
    if not case.seen.connected:
        return _gone(case)
    return case.unreachable(
        "something ended the connection at once. Is it an adyton server? One that has as many connections as it takes does so, too"
    )


def _gone(case: Case) -> AdytonError:
    if case.seen.silent:  # gRPC does not always say that it was never connected
        return _no_way(case)
    return case.unreachable("it ended the connection, and takes no other. Was the server stopped?")


def _expired(case: Case) -> AdytonError:
    wrong = case.seen.certificate.wrong_dates(case.now) if case.seen.certificate else ""
    if not wrong:  # another one of its chain, or of the CA
        return case.untrusted("its certificate, or one of its CA's, has expired. Have it renewed")
    return case.untrusted(f"its certificate {wrong}. Have it renewed")


def _not_yet_valid(case: Case) -> AdytonError:
    wrong = case.seen.certificate.wrong_dates(case.now) if case.seen.certificate else ""
    wrong = wrong or "is not valid yet"
    return case.untrusted(f"its certificate {wrong}. Is the time right, there and here?")


def _other_name(case: Case) -> AdytonError:
    names = case.seen.certificate.names if case.seen.certificate else ""
    host = case.address.host.strip("[]")
    if case.seen.certificate and not names:
        return case.untrusted(f"its certificate names no host (subjectAltName), and so not {host}. Have it replaced")
    return case.untrusted(
        f"its certificate is {f'for {names}' if names else 'for another name'}, not for {host}. "
        "Write the server's name as its certificate has it"
    )


def _self_signed(case: Case) -> AdytonError:
    return case.untrusted(
        f"its certificate is signed by itself, not signed by {case.authority}. If it is the right server, get that certificate "
        "from whoever runs it, and give it as --ca"
    )


def _other_authority(case: Case) -> AdytonError:
    issuer = case.seen.certificate.issuer if case.seen.certificate else ""
    return case.untrusted(
        f"its certificate is not signed by {case.authority}{f', but by {issuer}' if issuer else ''}. "
        "Is it the right server, and the right CA?"
    )


def _bad_certificate(case: Case) -> AdytonError:
    why = case.details.partition("CERTIFICATE_VERIFY_FAILED")[2].strip(": ").removesuffix(": OK")
    return case.untrusted(f"its certificate does not hold ({why}). Have it replaced")


def _client_certificate(case: Case) -> AdytonError:
    """The connection ended, or was refused, though the server's certificate held."""
    seen = case.seen
    if not seen.connected:
        return _gone(case)
    if not seen.tls:
        return case.unreachable(
            "something ended the TLS handshake. Is it an adyton server? One that has as many connections as it takes does so, too"
        )
    if not seen.http2:
        return _no_http2(case)
    if not seen.hung_up:
        return _unknown(case)
    if case.tls.cert is None:
        return UnauthenticatedError(
            f"{case.address.target} wants a client certificate: give --cert and --key, of the CA that the server names as --client-ca"
        )
    return UnauthenticatedError(
        f"{case.address.target} does not accept our client certificate ({case.tls.cert}): it must be signed by the CA that the server "
        "names as --client-ca, and be valid by the server's clock"
    )


def _unknown(case: Case) -> AdytonError:
    if case.seen.silent:
        return _no_way(case)
    return case.unreachable(f"{case.details or 'no details'}. Is an adyton server running there?")


class Reason(NamedTuple):
    """One row: what gRPC's details hold, for addresses with TLS (True), without (False), or either (None)."""

    mark: str
    secure: bool | None
    words: Callable[[Case], AdytonError]


REASONS = (
    Reason("HTTP proxy returned", None, _proxied),
    Reason("Connection refused", None, _refused),
    Reason("address lookup failed", None, _no_such_name),
    Reason("errors resolving", None, _no_such_name),
    Reason("No route to host", None, _no_way),
    Reason("Network is unreachable", None, _no_way),
    Reason("tcp handshaker shutdown", None, _silent),
    Reason("ping timeout", None, _stands_still),
    Reason("certificate has expired", True, _expired),
    Reason("certificate is not yet valid", True, _not_yet_valid),
    Reason("Hostname Verification Check failed", True, _other_name),
    Reason(NO_SUCH_NAME, True, _other_name),
    Reason("self signed certificate", True, _self_signed),
    Reason("unable to get", True, _other_authority),  # … local issuer certificate, … issuer certificate
    Reason("certificate signature failure", True, _other_authority),  # another CA of the same name
    Reason("CERTIFICATE_VERIFY_FAILED", True, _bad_certificate),
    Reason("WRONG_VERSION_NUMBER", True, _plaintext),
    Reason("ALPN", True, _no_http2),
    Reason("http1.x", None, _no_http2),
    Reason("Failed parsing HTTP/2", None, _no_http2),
    Reason("timed out", None, _silent),
    Reason("Handshake read failed (Endpoint closing)", True, _silent),
    Reason("", True, _client_certificate),
    Reason("losed", False, _closed_plaintext),
    Reason("reset", False, _closed_plaintext),
    Reason("", False, _unknown),
)
