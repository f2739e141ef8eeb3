"""aiohttp's server without its client, which no agent uses: three megabytes less in every node.

`import aiohttp` brings client and server. Here the package is entered without running its `__init__`, so that
`aiohttp.web` loads only what a server needs. Whoever asks the package for anything else (a test, a plugin) gets the
whole of it at that moment.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiohttp import web
else:
    if "aiohttp" not in sys.modules:
        _spec = importlib.util.find_spec("aiohttp")
        assert _spec is not None and _spec.loader is not None, "aiohttp is a dependency"
        _package = types.ModuleType("aiohttp")
        _package.__spec__ = _spec
        _package.__path__ = list(_spec.submodule_search_locations or ())
        _package.__file__ = _spec.origin
        _package.__version__ = importlib.metadata.version("aiohttp")

        def _rest(name: str) -> Any:
            """The rest of the package, when somebody asks for it after all."""
            if name.startswith("__") or importlib.util.find_spec(f"aiohttp.{name}") is not None:
                raise AttributeError(name)
            del _package.__getattr__
            _spec.loader.exec_module(_package)
            return getattr(_package, name)

        _package.__getattr__ = _rest
        sys.modules["aiohttp"] = _package
    web = importlib.import_module("aiohttp.web")

__all__ = ["web"]
