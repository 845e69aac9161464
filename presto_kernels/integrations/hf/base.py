"""What our modules for diffusers share."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from presto_kernels.integrations.swapping import Accelerated


class Fused(Accelerated):
    """Stands before a module of diffusers."""

    def _pass_on(self, reason: str, *args: Any, **given: Any) -> Any:
        """This call runs as the original, and is counted."""
        self._presto.pass_on(self, reason)
        return super().forward(*args, **given)


def unknown(given: Mapping[str, Any], known: Collection[str] = ()) -> str | None:
    """Why arguments that ours does not have cannot be taken, or None."""
    names = [name for name, value in given.items() if value is not None and name not in known]
    return f"the argument {', '.join(names)}" if names else None
