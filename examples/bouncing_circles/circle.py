"""The confidential program: one circle that moves. Each enclave has one of its own, and nobody else knows where it is going."""

import threading
from dataclasses import dataclass

from adyton import trusted

SMALLEST, LARGEST, PULSE = 10, 50, 2  # of the radius, and its change at each step


@dataclass
class Circle:
    """Where a circle starts, how far it goes at each step, and what it looks like. x and y below 0 count from the far edge."""

    x: int
    y: int
    dx: int
    dy: int
    radius: int
    fill: str


@dataclass
class Shape:
    """What is to be drawn."""

    x: int
    y: int
    radius: int
    fill: str


class CircleError(Exception):
    """The text begins with the name of a canonical status code."""


class BouncingCircle(trusted.TrustedApplication):
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._circle: Circle | None = None
        self._width = self._height = 0
        self._pulse = PULSE

    @trusted.entry
    def setup(self, circle: Circle, width: int, height: int) -> None:
        """Start the circle on a field of that many pixels, once."""
        if not 0 < height < width:
            raise CircleError(f"FAILED_PRECONDITION: a field of {width} by {height} is not wider than it is high")
        with self._lock:
            if self._circle is not None:
                raise CircleError(
                    f"ALREADY_EXISTS: the circle moves already, on a field of {self._width} by {self._height}"
                )
            circle.x += width if circle.x < 0 else 0
            circle.y += height if circle.y < 0 else 0
            self._circle, self._width, self._height = circle, width, height

    @trusted.entry
    def update(self) -> Shape:
        """Go one step: turn round at a tenth of the field from its edges; grow, or shrink."""
        with self._lock:
            circle = self._circle
            if circle is None:
                raise CircleError("NOT_FOUND: there is no circle before setup")
            circle.x, circle.dx = step(circle.x, circle.dx, self._width)
            circle.y, circle.dy = step(circle.y, circle.dy, self._height)
            circle.radius += self._pulse
            if circle.radius >= LARGEST:
                self._pulse = -PULSE
            elif circle.radius <= SMALLEST:
                self._pulse = PULSE
            return Shape(circle.x, circle.y, circle.radius, circle.fill)


def step(position: int, speed: int, size: int) -> tuple[int, int]:
    """The next position on one axis, and the speed from there on."""
    position += speed
    if position <= size * 0.1:
        speed = abs(speed)
    elif position >= size * 0.9:
        speed = -abs(speed)
    return position, speed
