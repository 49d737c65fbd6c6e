"""What requests and readers meet of every model: the routes, read without a lock.

Requests follow them in the data plane, without Python; the services read them here. A writer
replaces a model's route in both, in one step each and the plane's first, so that a reader sees one
route or the other, never waits, and sees none that requests do not follow yet.
"""

import secrets
import threading
from collections.abc import Iterable, Mapping
from typing import NoReturn

from trimtab._native.data_plane import DataPlane

from ..errors import InvalidRequestError, NotFoundError, UnavailableError, code_of
from ..inference.executor import SHUTTING_DOWN, Executor
from .served_model import Route, unknown_model
from .version_plan import ModelStatus

_STARTING = ": the server is starting"
_NOT_FOUND = " is not found"


class RouteTable:
    """Any thread. `begin`, then `refuse`, change what is said of all models."""

    def __init__(self, *, max_in_flight: int, max_in_flight_bytes: int) -> None:
        self.plane = DataPlane(secrets.token_hex(8))
        self.plane.set_unknown(code_of(UnavailableError()), _STARTING)
        self.plane.limit(max_in_flight, max_in_flight_bytes)
        self._routes: Mapping[str, Route] = {}  # read without a lock
        self._lock = threading.Lock()  # held by writers of _routes and of the plane's
        self._begun = False
        self._refusing = False

    def __len__(self) -> int:
        return len(self._routes)

    # -- readers

    def names(self) -> Iterable[str]:
        return self._routes.keys()

    def resolve(self, model: str, version: str) -> Executor:
        """The executor that answers a request now; `version` empty: the server's choice, which is
        never a challenger.

        Raises NotFoundError or UnavailableError, with Triton's texts, or InvalidRequestError.
        """
        if self._refusing:
            raise UnavailableError(SHUTTING_DOWN)
        route = self._routes.get(model)
        if route is None:
            self.refuse_unknown(model)
        if not version:
            if route.default is None:
                raise route.no_answer()
            return route.default
        number = _version_number(version)
        executor = route.executors.get(number)
        if executor is None:
            raise route.refusals().get(number) or NotFoundError(
                f"{unknown_model(model)} version {number} is not found"
            )
        return executor

    def executor(self, model: str, version: int) -> Executor | None:
        """Of a version that is ready."""
        route = self._routes.get(model)
        return None if route is None else route.executors.get(version)

    def ready(self) -> bool:
        """Whether every model that should answer can. A repository without models is ready:
        there is nothing that could fail a request and everything is ready for the first model.
        """
        if not self._begun or self._refusing:
            return False
        return all(
            route.default is not None or not route.required for route in self._routes.values()
        )

    def status(self, model: str) -> ModelStatus | None:
        """None: no such model."""
        route = self._routes.get(model)
        return None if route is None else route.current_status()

    def statuses(self) -> tuple[ModelStatus, ...]:
        """Every model, by name."""
        return tuple(route.current_status() for _, route in sorted(self._routes.items()))

    def loaded(self) -> tuple[tuple[str, int, Executor], ...]:
        """(model, version, executor) of every loaded version, by name and number."""
        return tuple(
            (name, version, executor)
            for name, route in sorted(self._routes.items())
            for version, executor in sorted(route.executors.items())
        )

    def refuse_unknown(self, model: str) -> NoReturn:
        if not self._begun:
            raise UnavailableError(f"{unknown_model(model)}{_STARTING}")
        raise NotFoundError(f"{unknown_model(model)}{_NOT_FOUND}")

    # -- writers

    def begin(self) -> None:
        """Every model has a route now: one without is not there."""
        self._begun = True
        self.plane.set_unknown(code_of(NotFoundError()), _NOT_FOUND)

    def refuse(self) -> None:
        """From now on requests are refused; those under way are finished."""
        self.plane.refuse(code_of(UnavailableError()), SHUTTING_DOWN)

    def end(self) -> None:
        """There is nothing left to read either."""
        self._refusing = True
        self.refuse()

    def clear(self) -> None:
        with self._lock:
            self._routes = {}

    def set(self, model: str, route: Route) -> Route | None:
        """Lets requests and readers follow the route; returns the one before."""
        none = route.no_answer()
        challenger = route.challenger
        with self._lock:
            before = self._routes.get(model)
            # The plane first: what a reader is told holds for requests already.
            self.plane.set_route(
                model,
                route.default.version if route.default else None,
                (code_of(none), str(none)),
                [each.version for each in route.executors.values()],
                {number: (code_of(why), str(why)) for number, why in route.refusals().items()},
                challenger.version if challenger else None,
                route.shares,
            )
            self._routes = {**self._routes, model: route}
        return before

    def remove(self, model: str) -> None:
        with self._lock:
            self._routes = {name: route for name, route in self._routes.items() if name != model}
            self.plane.remove_route(model)


def _version_number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18 and int(text) > 0):
        raise InvalidRequestError(
            f"failed to get model version from specified version string '{text}' "
            "(version should be an integral value > 0)"
        )
    return int(text)
