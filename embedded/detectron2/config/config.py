"""CfgNode, the tree of settings, and `configurable`, which builds classes from it."""

import contextlib
import difflib
import functools
import inspect
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

from fvcore.common.config import BASE_KEY
from fvcore.common.config import CfgNode as _CfgNode

from detectron2.config import safe_yaml
from detectron2.config.compat import refuse_old
from detectron2.utils.file_io import PathManager

__all__ = ["CfgNode", "configurable", "get_cfg", "global_cfg", "set_global_cfg"]

_VERSION = 2  # of the names in the default tree


class CfgNode(_CfgNode):
    """A tree of settings with the type rules of yacs.

    A value keeps its type when merged (tuple and list replace each other, None replaces and is replaced by anything);
    a key must exist. YAML files may name others in `_BASE_`. Nothing in a file is ever executed, see `safe_yaml`.
    """

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict[str, Any]:
        """The settings of a YAML file on top of those of its `_BASE_` files.

        Args:
            filename: a path or address.
            allow_unsafe: has no effect, since no file is ever read in an unsafe way.

        Raises:
            AssertionError: a file does not exist, or a section replaces a plain value of the base.
            ValueError: not a mapping, a refused tag, or a file that is its own base.
        """
        return cls._load_with_bases(filename, ())

    @classmethod
    def _load_with_bases(cls, filename: str, children: tuple[str, ...]) -> dict[str, Any]:
        if filename in children:
            raise ValueError(f"Config file {filename!r} is its own {BASE_KEY}: {' -> '.join((*children, filename))}")
        assert PathManager.isfile(filename), f"Config file '{filename}' does not exist!" + (
            f" It is the {BASE_KEY} of '{children[-1]}'." if children else ""
        )
        with PathManager.open(filename, "r") as file:
            own = safe_yaml.load(file, filename)
        own = {} if own is None else own
        if not isinstance(own, dict):
            raise ValueError(f"Config file {filename!r} holds a {type(own).__name__}, expected `KEY: value` lines.")
        bases = own.pop(BASE_KEY, [])
        merged: dict[str, Any] = {}
        for base in [bases] if isinstance(bases, str) else bases:
            path = os.path.expanduser(base)
            if "://" not in path:
                path = os.path.join(os.path.dirname(filename), path)  # an absolute path stays itself
            _overlay(merged, cls._load_with_bases(path, (*children, filename)))
        _overlay(merged, own)
        return merged

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = True) -> None:
        """Merge a YAML file and its bases into this tree.

        Raises:
            AssertionError: no such file, or a config of a newer version.
            KeyError: a key this tree does not have; the message names the nearest ones.
            ValueError: a value of another type than the one it replaces, or anything refused in the file.
        """
        loaded = type(self)(self.load_yaml_with_base(cfg_filename, allow_unsafe=allow_unsafe))
        if "VERSION" in self:
            self._check_version(loaded, cfg_filename)
        with self._explaining(loaded, f" (in {cfg_filename})"):
            self.merge_from_other_cfg(loaded)

    def merge_from_list(self, cfg_list: list[Any]) -> None:
        """Merge `[key, value, key, value, ...]`, as given on the command line.

        Raises:
            AssertionError: a key this tree does not have, or an odd number of items.
            ValueError: a value of another type than the one it replaces.
        """
        with self._explaining(dict(zip(cfg_list[0::2], cfg_list[1::2])), ""):
            super().merge_from_list(cfg_list)

    def _check_version(self, loaded: "CfgNode", filename: str) -> None:
        assert self.VERSION == _VERSION, f"Merging needs a config of version {_VERSION}, this one is {self.VERSION}."
        logger = logging.getLogger(__name__)
        version = loaded.get("VERSION")
        if version is None:
            old = "WEIGHT" in loaded.get("MODEL", {}) or "AUG_ON" in loaded.get("TEST", {})
            version = 1 if old else _VERSION
            logger.warning("Config '%s' has no VERSION. Assuming it to be version %d.", filename, version)
        assert version <= _VERSION, f"Cannot merge a v{version} config into a v{_VERSION} config."
        if version < _VERSION:
            refuse_old(filename)

    @contextlib.contextmanager
    def _explaining(self, new: dict[str, Any], where: str) -> Iterator[None]:
        """Add to the errors of yacs where the mistake is and what to write instead."""
        try:
            yield
        except (KeyError, AssertionError) as error:
            message = str(error.args[0]) if error.args else ""
            if not message.startswith(("Non-existent config key: ", "Non-existent key: ")):
                raise
            key = message.rpartition(": ")[2]
            raise type(error)(f"{message}{where}.{self._advice(key, _look_up(new, key))}") from None
        except ValueError as error:
            message = str(error)
            if not message.startswith("Type mismatch"):
                raise
            key = message.rpartition(": ")[2]
            old = _look_up(self, key)
            hint = _type_hint(old, self._decode_cfg_value(_look_up(new, key)))
            if isinstance(old, dict):  # the message quotes the whole section
                message = f"Type mismatch (section vs. {_look_up(new, key)!r}) for config key: {key}"
            raise ValueError(f"{message}{where}{hint}") from None

    def _advice(self, key: str, value: Any) -> str:
        """What may have been meant by a key that does not exist."""
        names = list(safe_yaml.flatten(self))
        section, _, last = key.rpartition(".")
        if isinstance(value, dict):
            section = key
        if section and section not in names:
            return f" There is no section {section}: was the project's add_..._config(cfg) called before?"
        close = difflib.get_close_matches(key, names, n=3, cutoff=0.75)
        close += [name for name in names if name.rpartition(".")[2] == last and name not in close]
        return f" Did you mean {' or '.join(close[:3])}?" if close else ""


def _overlay(base: dict[str, Any], top: dict[str, Any]) -> None:
    """Put `top` over `base` in place, section by section."""
    for key, value in top.items():
        if key in base and isinstance(value, dict):
            assert isinstance(base[key], dict), f"Cannot inherit key '{key}' from base!"
            _overlay(base[key], value)
        else:
            base[key] = value


def _look_up(tree: dict[str, Any], key: str) -> Any:
    if key in tree:  # a flat list of overrides
        return tree[key]
    for part in key.split("."):
        tree = tree[part]
    return tree


def _type_hint(old: Any, new: Any) -> str:
    """What to write instead of `new` where a value like `old` is expected."""
    if isinstance(old, float) and type(new) is int:
        return f": write {float(new)} instead of {new}"
    if type(old) is int and isinstance(new, float) and new.is_integer():
        return f": write {int(new)} instead of {new}"
    if isinstance(old, bool):
        return f": write True or False instead of {new}"
    if isinstance(old, list | tuple) and not isinstance(new, dict):
        return f": write ({new!r},) instead of {new!r}"
    if isinstance(old, dict):
        return ": this is a section, set the keys below it"
    return f": expected {type(old).__name__}, got {type(new).__name__}"


global_cfg = CfgNode()


def get_cfg() -> CfgNode:
    """A fresh copy of the default tree."""
    from detectron2.config.defaults import _C

    return _C.clone()


def set_global_cfg(cfg: CfgNode) -> None:
    """Let `detectron2.config.global_cfg`, the same object for everybody, hold what `cfg` holds."""
    global_cfg.clear()
    global_cfg.update(cfg)


def configurable(init_func: Callable[..., Any] | None = None, *, from_config: Callable[..., Any] | None = None) -> Any:
    """Let a class or function be called with a cfg as well as with its own arguments.

    On `__init__`: the class (or a subclass) has a classmethod `from_config(cls, cfg, ...)` that returns the arguments
    of `__init__` as a dict; `Class(cfg, ...)` calls it. Arguments that it does not name go to `__init__` directly.
    On a function: `@configurable(from_config=function_of_cfg)`.

    Raises:
        AttributeError: the class has no `from_config`.
        TypeError: `from_config` is no classmethod, or its first parameter is not `cfg`.
    """
    if init_func is not None:
        if not inspect.isfunction(init_func) or init_func.__name__ != "__init__" or from_config is not None:
            raise TypeError("Use @configurable on __init__, or @configurable(from_config=...) on a function.")
        return _configurable_init(init_func)
    if from_config is None:
        return configurable  # @configurable() equals @configurable
    if not inspect.isfunction(from_config):
        raise TypeError("from_config of @configurable must be a function.")
    return functools.partial(_configurable_function, from_config)


def _configurable_init(init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        from_config = getattr(type(self), "from_config", None)
        if from_config is None:
            raise AttributeError("Class with @configurable must have a 'from_config' classmethod.")
        if not inspect.ismethod(from_config):
            raise TypeError("Class with @configurable must have a 'from_config' classmethod.")
        if _has_cfg(args, kwargs):
            init(self, **_explicit_arguments(from_config, args, kwargs))
        else:
            init(self, *args, **kwargs)

    return wrapped


def _configurable_function(from_config: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if _has_cfg(args, kwargs):
            return function(**_explicit_arguments(from_config, args, kwargs))
        return function(*args, **kwargs)

    wrapped.from_config = from_config
    return wrapped


def _has_cfg(args: tuple, kwargs: dict[str, Any]) -> bool:
    candidate = args[0] if args else kwargs.get("cfg")
    return isinstance(candidate, _CfgNode)


def _explicit_arguments(from_config: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """What `from_config` makes of the arguments it names, plus the arguments it does not."""
    parameters = inspect.signature(from_config).parameters
    if next(iter(parameters), None) != "cfg":
        owner = getattr(from_config, "__self__", None)
        name = f"{owner.__name__}.from_config" if owner is not None else from_config.__name__
        raise TypeError(f"{name} must take 'cfg' as the first argument!")
    takes_all = any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters.values())
    named = {name: value for name, value in kwargs.items() if takes_all or name in parameters}
    rest = {name: value for name, value in kwargs.items() if name not in named}
    return {**from_config(*args, **named), **rest}
