"""`required` imports a package of an extra, which may be missing."""

from __future__ import annotations

import importlib
from typing import Any

from treadle.model.errors import ConfigError


def required(package: str, extra: str) -> Any:
    """Imports a package.

    Args:
        package: The package.
        extra: The extra of Treadle that installs it.

    Returns:
        The module.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as fault:
        if fault.name != package:
            raise
        raise ConfigError(
            f"the export needs the package {package}: pip install '.[{extra}]' in a checkout of "
            "Treadle"
        ) from fault
