"""A CUDA of which one call fails."""

from __future__ import annotations

from typing import Any

from cuda.bindings import runtime

from tests.support.fake_cuda import FakeRuntime

_VALUES = {"cudaMemGetInfo": 2, "cudaStreamEndCapture": 1, "cudaPointerGetAttributes": 1, "cudaGetDevice": 1}
"""The number of results beside the status, of functions whose callers unpack them by themselves."""
_SAFE = ("cudaFree", "cudaGetError", "cudaThreadExchange")
"""The beginnings of functions that give back or tell: without them, nothing could be given back."""


class FaultyRuntime(FakeRuntime):
    """Fails one call, which has no effect then. Those that free and destroy never fail."""

    def __init__(self, fails: int) -> None:
        """Count calls.

        Args:
            fails: the number of the call that fails, from 1; 0 for none.
        """
        super().__init__()
        self.calls = 0
        """The calls so far that can fail."""
        self.failed = ""
        """The function that failed."""
        self._fails = fails

    def __getattribute__(self, name: str) -> Any:
        """Return a function of CUDA that counts, or whatever else there is."""
        found = super().__getattribute__(name)
        if not name.startswith("cuda") or name.startswith(_SAFE) or name.endswith("Destroy") or not callable(found):
            return found

        def counted(*arguments: Any) -> Any:
            self.calls += 1
            if self.calls != self._fails:
                return found(*arguments)
            self.failed = name
            if name == "cudaStreamEndCapture":  # the capture is over all the same
                self._recorded_on.pop(arguments[0])
                self._capturing.stream = None
            return (runtime.cudaError_t.cudaErrorUnknown, *[0] * _VALUES.get(name, 0))

        return counted
