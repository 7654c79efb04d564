"""deltalens: what changed in the weights when a language model learned to reason.

Public names load on first use (PEP 562), so that importing the package costs neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deltalens.checkpoint.pair import Pair as Pair
    from deltalens.errors import BadInput as BadInput
    from deltalens.errors import DeltalensError as DeltalensError
    from deltalens.errors import Refused as Refused
    from deltalens.spectrum.measure import measure_diff as measure_diff
    from deltalens.store.run import Run as Run

__version__ = "0.1.0"

_PUBLIC = {
    "Pair": "deltalens.checkpoint.pair",
    "measure_diff": "deltalens.spectrum.measure",
    "Run": "deltalens.store.run",
    "DeltalensError": "deltalens.errors",
    "BadInput": "deltalens.errors",
    "Refused": "deltalens.errors",
}
__all__ = ["BadInput", "DeltalensError", "Pair", "Refused", "Run", "measure_diff"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'deltalens' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
