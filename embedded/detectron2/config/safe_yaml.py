"""YAML without code: only plain values, tuples, and lists of numbers written as arithmetic.

The published configs write their training sizes as
`!!python/object/apply:eval ["[int(x * 0.1 * 512) for x in range(5, 21)]"]`.
`evaluate` computes such expressions from their syntax tree; Python's own eval is never called.
"""

import ast
import operator
from collections.abc import Callable, Iterable
from typing import IO, Any, NoReturn

import yaml

MAX_LENGTH = 2000  # characters of an expression
MAX_ITEMS = 10_000  # items of a list or range
MAX_STEPS = 100_000  # nodes evaluated in one expression
MAX_NUMBER = 10**15
MAX_VALUES = 100_000  # of a file, aliases written out

_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "int": int,
    "float": float,
    "round": round,
    "min": min,
    "max": max,
    "range": range,
    "list": list,
    "tuple": tuple,
}


def evaluate(expression: str) -> Any:
    """The value of an arithmetic expression.

    Understood: numbers, + - * / // % **, lists, tuples, list comprehensions, and the functions int, float, round, min,
    max, range, list, tuple. Work and sizes are bounded.

    Raises:
        ValueError: anything else is in the expression, or it is too much work.
    """
    if len(expression) > MAX_LENGTH:
        raise ValueError(f"the expression has more than {MAX_LENGTH} characters")
    try:
        tree = ast.parse(expression.strip(), mode="eval")
        return _Evaluator().visit(tree.body, {})
    except ValueError:
        raise
    except (SyntaxError, TypeError, ArithmeticError, RecursionError, MemoryError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


class _Evaluator:
    """Walks the syntax tree of one expression and counts its steps."""

    def __init__(self) -> None:
        self.steps = 0

    def visit(self, node: ast.AST, names: dict[str, Any]) -> Any:
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise ValueError(f"more than {MAX_STEPS} steps")
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            return _bounded(node.value)
        if isinstance(node, ast.Name) and node.id in names:
            return names[node.id]
        if isinstance(node, ast.List | ast.Tuple):
            items = [self.visit(item, names) for item in node.elts]
            return items if isinstance(node, ast.List) else tuple(items)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            value = _number(self.visit(node.operand, names))
            return -value if isinstance(node.op, ast.USub) else value
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return self.binary(node, names)
        if isinstance(node, ast.ListComp):
            return self.comprehension(node, names)
        if isinstance(node, ast.Call):
            return self.call(node, names)
        raise ValueError(f"`{ast.unparse(node)}` is not arithmetic")

    def binary(self, node: ast.BinOp, names: dict[str, Any]) -> Any:
        left, right = self.visit(node.left, names), self.visit(node.right, names)
        if isinstance(node.op, ast.Add) and type(left) is type(right) and isinstance(left, list | tuple):
            return _short(left + right)
        left, right = _number(left), _number(right)
        if isinstance(node.op, ast.Pow) and (abs(right) > 50 or abs(left) > 10_000):
            raise ValueError(f"the power {left} ** {right} is too large")
        return _bounded(_OPERATORS[type(node.op)](left, right))

    def comprehension(self, node: ast.ListComp, names: dict[str, Any]) -> list[Any]:
        if len(node.generators) != 1:
            raise ValueError("a list comprehension may have one `for` only")
        loop = node.generators[0]
        if loop.ifs or loop.is_async or not isinstance(loop.target, ast.Name):
            raise ValueError("a list comprehension may only be `[... for name in ...]`")
        values = _short(self.visit(loop.iter, names))
        return [self.visit(node.elt, {**names, loop.target.id: value}) for value in values]

    def call(self, node: ast.Call, names: dict[str, Any]) -> Any:
        if not isinstance(node.func, ast.Name) or node.func.id not in _FUNCTIONS or node.keywords:
            raise ValueError(f"`{ast.unparse(node)}` is not an allowed call; allowed are {', '.join(_FUNCTIONS)}")
        arguments = [self.visit(argument, names) for argument in node.args]
        result = _FUNCTIONS[node.func.id](*arguments)
        return _short(result) if isinstance(result, range | list | tuple) else _bounded(result)


def _number(value: Any) -> int | float:
    if type(value) not in (int, float):
        raise ValueError(f"expected a number, got {type(value).__name__}")
    return value


def _bounded(value: Any) -> int | float:
    value = _number(value)
    if not abs(value) <= MAX_NUMBER:  # also refuses nan
        raise ValueError(f"a number beyond {MAX_NUMBER}")
    return value


def _short(values: Any) -> Any:
    if not isinstance(values, range | list | tuple):
        raise ValueError(f"cannot go through a {type(values).__name__}")
    # len(range) overflows for huge ranges: slicing does not
    if len(values[: MAX_ITEMS + 1]) > MAX_ITEMS:
        raise ValueError(f"more than {MAX_ITEMS} items")
    return values


class _Loader(yaml.SafeLoader):
    """SafeLoader plus `!!python/tuple` and arithmetic; every other tag is refused with its place."""


def _construct_expression(loader: _Loader, node: yaml.Node) -> Any:
    value = loader.construct_sequence(node) if isinstance(node, yaml.SequenceNode) else [node.value]
    if len(value) != 1 or not isinstance(value[0], str):
        _refuse(node, "eval takes one expression in quotes")
    try:
        return evaluate(value[0])
    except ValueError as error:
        _refuse(node, f"{value[0]!r}: {error}")


def _construct_tuple(loader: _Loader, node: yaml.Node) -> tuple[Any, ...]:
    return tuple(loader.construct_sequence(node, deep=True))


def _construct_unknown(loader: _Loader, node: yaml.Node) -> Any:
    content = node.value if isinstance(node, yaml.ScalarNode) else yaml.serialize(node).strip()
    _refuse(node, f"{content[:200]!r}: only plain values, tuples and arithmetic are read from YAML")


def _refuse(node: yaml.Node, reason: str) -> NoReturn:
    mark = node.start_mark
    tag = node.tag.replace("tag:yaml.org,2002:", "!!")
    raise ValueError(f"{mark.name}, line {mark.line + 1}: refused {tag} {reason}. Write the value itself instead.")


_Loader.add_constructor("tag:yaml.org,2002:python/object/apply:eval", _construct_expression)
_Loader.add_constructor("tag:yaml.org,2002:python/tuple", _construct_tuple)
_Loader.add_constructor(None, _construct_unknown)


def load(stream: IO[str], name: str) -> Any:
    """Read one YAML document.

    Args:
        stream: the open file.
        name: what errors call the file.

    Raises:
        ValueError: a tag asks for an object or for code, or aliases multiply; the message has file, line and value.
        yaml.YAMLError: the file is not YAML.
    """
    loader = _Loader(stream.read())
    loader.name = name
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        _expanded_size(root, {})
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _expanded_size(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Values in a node with every alias written out: a few lines of aliases of aliases can stand for billions."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    size = known.get(id(node), 0)
    if size is None:
        _refuse(node, "a value that contains itself")
    if not size:
        known[id(node)] = None  # until it is counted
        parts = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,))]
        size = 1 + sum(_expanded_size(part, known) for part in parts)
        if size > MAX_VALUES:
            _refuse(node, f"aliases that stand for more than {MAX_VALUES} values")
        known[id(node)] = size
    return size


def flatten(tree: dict[str, Any], prefix: str = "") -> Iterable[str]:
    """The dotted names of all nodes and leaves of a nested dict."""
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
