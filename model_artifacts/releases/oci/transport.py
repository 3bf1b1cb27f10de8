"""Requests to a registry: tokens, redirects, retries and bounded answers. It alone uses `requests`.

Credentials go to the registry's own origin and to the realm that it names, over TLS unless the URL asks for none. A
redirect to another origin, as to a bucket, carries no Authorization. No message shows a secret.
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urljoin, urlsplit

from model_artifacts.errors import StoreError, one_line, shortened
from model_artifacts.releases.objects import remedy, without_secrets
from model_artifacts.releases.oci.credentials import Credentials, credentials_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import requests
    from requests.models import PreparedRequest

    from model_artifacts.releases.oci.references import Reference

_SILENT_SECONDS = 60.0
"""Seconds without a byte after which a connection counts as dead."""
_ATTEMPTS, _FIRST_PAUSE, _LONGEST_PAUSE = 5, 0.5, 30.0
"""Attempts of a request that fails for the moment, and the seconds between the first two, doubled each time."""
_MAX_REDIRECTS = 5
_MAX_ANSWER_BYTES = 2**16
"""Most bytes of a token's or an error's answer."""
_BUSY = frozenset({429, 500, 502, 503, 504})
"""Statuses that may be others a moment later."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class BrokenError(StoreError):
    """A connection that broke, or a registry that is busy: the same request may succeed later."""


class RefusedError(StoreError):
    """A request that the registry refuses, and will refuse again."""


@dataclass(frozen=True)
class Request:
    """A request to a registry."""

    method: str
    url: str
    """Absolute, or relative to the registry's API."""
    doing: str
    """The action as a phrase for messages."""
    headers: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    also: frozenset[int] = frozenset()
    """Statuses besides those of success that the caller handles."""
    attempts: int = 0
    """How often it is sent while it fails for the moment; 0 for the usual number."""


class _Origin(NamedTuple):
    """Scheme, host and port of a URL."""

    scheme: str
    host: str
    port: int | None


class _Authorization:
    """The header for one request, as `requests` applies it; without one, it would look into ~/.netrc."""

    def __init__(self, value: str) -> None:
        self._value = value

    def __call__(self, request: PreparedRequest) -> PreparedRequest:
        """Set the header, or remove it."""
        request.headers.pop("Authorization", None)
        if self._value:
            request.headers["Authorization"] = self._value
        return request


class Transport:
    """The connection to one registry."""

    def __init__(self, reference: Reference, attempts: int = _ATTEMPTS) -> None:
        """Prepare a session; no request is sent yet.

        Args:
            reference: the registry.
            attempts: how often a request is sent while it fails for the moment.

        Raises:
            StoreError: `requests` is not installed.
        """
        try:
            import requests  # noqa: PLC0415 - only where a registry is used
            from requests.adapters import HTTPAdapter  # noqa: PLC0415 - the same
            from urllib3.exceptions import HTTPError  # noqa: PLC0415 - the same
        except ImportError as exc:
            raise StoreError(
                "oci:// needs a package that is not installed here",
                got=one_line(exc),
                fix='pip install "model-artifacts[oci,verify]"',
            ) from exc
        self.reference = reference
        self._attempts = attempts
        self._certificate_error: type[Exception] = requests.exceptions.SSLError
        self._failures: tuple[type[Exception], ...] = (requests.exceptions.RequestException, HTTPError, OSError)
        """What requests raises and, while a body is read, urllib3 below it."""
        self._session = requests.Session()
        # A cookie would make some registries expect a browser.
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self._session.headers["User-Agent"] = "model-artifacts"
        for scheme in ("https://", "http://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=16))
        self._origin = _origin(reference.root)
        self._lock = threading.Lock()
        self._authorization = ""
        self._credentials: Credentials | None = None

    @contextmanager
    def opened(self, request: Request) -> Iterator[requests.Response]:
        """Yield an answer whose body was not read yet, and close it.

        Raises:
            BrokenError: the registry cannot be reached, or stays busy.
            StoreError: it refuses the request.
        """
        response = self._answered(request)
        try:
            yield response
        except self._failures as exc:
            raise self._broken(request, exc) from None
        finally:
            response.close()

    def send(self, request: Request, limit: int = _MAX_ANSWER_BYTES) -> tuple[requests.Response, bytes]:
        """Return an answer with its whole body.

        Args:
            request: the request.
            limit: the largest accepted body in bytes.

        Raises:
            BrokenError: the registry cannot be reached, or stays busy.
            StoreError: it refuses the request, or its answer is larger.
        """
        with self.opened(request) as response:
            data = read(response, limit + 1)
            if len(data) > limit:
                raise StoreError(
                    f"{self.reference.shown}: the answer to {request.doing} is too large",
                    expected=f"at most {limit:,} bytes",
                )
            return response, data

    def is_home(self, url: str) -> bool:
        """Return True for a URL of the registry's own origin."""
        return _origin(url) == self._origin

    def _answered(self, request: Request) -> requests.Response:
        """Send a request until the registry answers, with a token where it asks for one."""
        pause, attempts = _FIRST_PAUSE, request.attempts or self._attempts
        for attempt in range(1, attempts + 1):
            try:
                response = self._authorized(request)
            except BrokenError:
                if attempt == attempts:
                    raise
                time.sleep(pause)
            else:
                if response.status_code < HTTPStatus.BAD_REQUEST or response.status_code in request.also:
                    return response
                asked = response.headers.get("Retry-After", "")
                refusal = self._refused(request, response)
                if not isinstance(refusal, BrokenError) or attempt == attempts:
                    raise refusal
                time.sleep(min(float(asked), _LONGEST_PAUSE) if asked.isdecimal() else pause)
            pause *= 2
        raise AssertionError("every attempt returns or raises")  # pragma: no cover

    def _authorized(self, request: Request) -> requests.Response:
        """Send a request; once more with a token or a password, if the registry asks for one."""
        before = self._authorization
        response = self._redirected(request, before)
        if not (challenge := self._challenge(response)):
            return response
        response.close()
        with self._lock:
            if self._authorization == before:
                self._authorization = self._answer_to(challenge)
        response = self._redirected(request, self._authorization)
        if again := self._challenge(response):  # another thread's token has another scope
            response.close()
            return self._redirected(request, self._answer_to(again))
        return response

    def _challenge(self, response: requests.Response) -> str:
        """Return what the registry asks for; empty if it does not ask, and for an answer from elsewhere.

        A server to which a request was redirected could else name a realm, and get the password there.
        """
        if response.status_code != HTTPStatus.UNAUTHORIZED or _origin(str(response.url)) != self._origin:
            return ""
        return response.headers.get("WWW-Authenticate", "")

    def _redirected(self, request: Request, authorization: str) -> requests.Response:
        """Send a request, and follow redirects, to other origins without the credentials.

        Raises:
            StoreError: a redirect leads out of TLS, or there are too many.
        """
        method, url, params, body = (
            request.method,
            urljoin(self.reference.root, request.url),
            request.params,
            request.body,
        )
        for _ in range(_MAX_REDIRECTS + 1):
            there = _origin(url)
            if there.scheme not in {"https", "http"} or (there.scheme == "http" and not self.reference.plain):
                raise StoreError(
                    f"{self.reference.shown}: {request.doing} leads to a server without TLS",
                    got=without_secrets(url),
                    fix="repair the registry's external URL",
                )
            try:
                response = self._session.request(
                    method,
                    url,
                    params=dict(params),
                    data=body or None,
                    headers={"Accept-Encoding": "identity", **request.headers},
                    auth=_Authorization(authorization if there == self._origin else ""),
                    allow_redirects=False,
                    stream=True,
                    timeout=(_SILENT_SECONDS, _SILENT_SECONDS),
                )
            except self._certificate_error as exc:
                raise self._without_trust(exc) from None
            except self._failures as exc:
                raise self._broken(request, exc) from None
            target = response.headers.get("Location", "")
            if response.status_code not in _REDIRECTS or not target:
                return response
            response.close()
            url, params = urljoin(url, target), {}
        raise StoreError(f"{self.reference.shown}: {request.doing} is redirected too often")

    def _without_trust(self, exc: Exception) -> StoreError:
        """Return the error of a certificate that nobody here knows, or of a server that speaks no TLS."""
        if "CERTIFICATE_VERIFY_FAILED" in str(exc):
            what = "its certificate is not trusted here"
            fix = "name the certificate of its authority in REQUESTS_CA_BUNDLE"
        else:
            what = "the server speaks no TLS"
            fix = "name its port with TLS; or write oci+http:// if all between here and there may read and change it"
        return StoreError(f"{self.reference.shown}: {what}", got=without_secrets(one_line(exc)), fix=fix)

    def _answer_to(self, challenge: str) -> str:
        """Return the Authorization that a registry asks for.

        Raises:
            StoreError: it refuses the credentials, or asks in a way that is not known here.
        """
        from requests.utils import parse_dict_header  # noqa: PLC0415 - only where a registry is used

        if self._credentials is None:
            self._credentials = credentials_for(self.reference.host) or Credentials()
        scheme, _, rest = challenge.partition(" ")
        if scheme.lower() == "basic":
            return f"Basic {self._credentials.basic}" if self._credentials.password else ""
        asked = {name: value or "" for name, value in parse_dict_header(rest).items()}
        realm = _origin(asked.get("realm", ""))
        if scheme.lower() != "bearer" or realm.scheme not in ({"https", "http"} if self.reference.plain else {"https"}):
            raise StoreError(
                f"{self.reference.shown} asks for credentials in a way that is refused here",
                expected="Basic, or Bearer with a realm over TLS",
                got=shortened(without_secrets(challenge)),
            )
        return f"Bearer {self._token(asked)}"

    def _token(self, asked: Mapping[str, str]) -> str:
        """Return a token of the realm in a challenge.

        Raises:
            StoreError: the realm refuses, or its answer is no token.
        """
        known = self._credentials or Credentials()
        wish = {name: asked[name] for name in ("service", "scope") if asked.get(name)}
        by_refresh = {
            **wish,
            "grant_type": "refresh_token",
            "client_id": "model-artifacts",
            "refresh_token": known.refresh,
        }
        request = Request("POST" if known.refresh else "GET", asked["realm"], "asking for a token")
        try:
            response = self._session.request(
                request.method,
                request.url,
                params=None if known.refresh else wish,
                data=by_refresh if known.refresh else None,
                auth=_Authorization(f"Basic {known.basic}" if known.password else ""),
                allow_redirects=False,
                stream=True,
                timeout=(_SILENT_SECONDS, _SILENT_SECONDS),
            )
            with response:
                if response.status_code != HTTPStatus.OK:
                    raise self._refused(request, response)
                data = read(response, _MAX_ANSWER_BYTES)
        except self._failures as exc:
            raise self._broken(request, exc) from None
        try:
            answer = json.loads(data)
            token = answer.get("token") or answer.get("access_token")
        except (ValueError, AttributeError):
            token = None
        if not isinstance(token, str) or not token.isascii() or not token.isprintable() or not token:
            raise StoreError(f"{self.reference.shown}: the answer to a request for a token holds none")
        return token

    def _broken(self, request: Request, exc: BaseException) -> BrokenError:
        return BrokenError(
            f"{self.reference.shown}: {request.doing} failed",
            got=self._without_ours(without_secrets(one_line(exc))),
            fix="check the host and the network, then run the command again: it goes on where it was",
        )

    def _refused(self, request: Request, response: requests.Response) -> StoreError:
        """Return the error for a status, with the registry's own words, and close the answer."""
        status = response.status_code
        try:
            with response:
                data = read(response, _MAX_ANSWER_BYTES)
        except self._failures:
            data = b""
        try:
            first = json.loads(data)["errors"][0]
            said = ": ".join(str(first[name]) for name in ("code", "message") if first.get(name))
        except (ValueError, LookupError, TypeError, AttributeError):
            said = response.reason or ""
        kind = BrokenError if status in _BUSY else RefusedError
        return kind(
            f"{self.reference.shown}: {request.doing} failed",
            got=self._without_ours(shortened(without_secrets(f"status {status}, {said}"))),
            fix=f"{remedy(status)}; `docker login {self.reference.host}` keeps them"
            if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}
            else remedy(status),
        )

    def _without_ours(self, text: str) -> str:
        """Return a text without the credentials, which a server may echo."""
        token = self._authorization.partition(" ")[2]
        for secret in (*(self._credentials.secrets if self._credentials else ()), token):
            text = text.replace(secret, "…") if secret else text
        return text


def read(response: requests.Response, count: int) -> bytes:
    """Return up to `count` of the next bytes of a body, as they came."""
    data: bytes = response.raw.read(count, decode_content=False)
    return data


def _origin(url: str) -> _Origin:
    parts = urlsplit(url)
    usual = {"https": 443, "http": 80}.get(parts.scheme)
    try:
        return _Origin(parts.scheme, parts.hostname or "", parts.port or usual)
    except ValueError:  # a port that is none
        return _Origin("", "", None)
