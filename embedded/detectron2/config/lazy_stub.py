"""Python-file ("lazy") configs are not supported; the names exist so that scripts which only import them run."""

from typing import Any, NoReturn

from detectron2._unsupported import refuse


class LazyConfig:
    """Stands in for upstream's class; every use raises NotEmbeddedError."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        refuse("config.LazyConfig")

    @staticmethod
    def load(*args: Any, **kwargs: Any) -> NoReturn:
        refuse("config.LazyConfig")

    load_rel = save = apply_overrides = to_py = load


class LazyCall:
    """Stands in for upstream's class; every use raises NotEmbeddedError."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        refuse("config.LazyCall")


def instantiate(cfg: Any) -> Any:
    """Upstream builds objects from lazy configs with this; here it raises NotEmbeddedError."""
    refuse("config.instantiate")
