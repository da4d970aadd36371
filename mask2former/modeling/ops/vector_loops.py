"""Innermost loops of attention, deformable and in windows, as LLVM vector code for use inside Numba functions.

Left to LLVM's own vectoriser these loops, 32 numbers long and full of addresses it cannot tell apart, take three times
as long. Addresses are integers; rows are float32; four `index` and `weight` arrays, one for each corner of a bilinear
sample, lie `stride` elements apart.
"""

import functools
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

CORNERS = 4
# Vector length and vectors at a time: the second serves what the first leaves over, the third the odd rest.
SHAPES = ((16, 2), (8, 1), (1, 1))
# Rows of a product at a time, likewise.
HEIGHTS = (4, 1)

_INT = ir.IntType(64)
_FLOAT = ir.FloatType()
_CONTRACT = ("contract", "reassoc")


@intrinsic
def gather_rows(typingctx, out, value, index, weight, stride, points, channels, row):
    """out[:channels] = sum over points and corners of weight * value[index * row :][:channels]."""
    return _definition(8, functools.partial(_gather, _float32_vector))


@intrinsic
def gather_bfloat16_rows(typingctx, out, value, index, weight, stride, points, channels, row):
    """`gather_rows` of values in bfloat16; sums and result are float32."""
    return _definition(8, functools.partial(_gather, _bfloat16_vector))


def _gather(load: Callable[..., ir.Value], builder: ir.IRBuilder, args: list[ir.Value]) -> None:
    out, value, index, weight, stride, points, channels, row = args

    def chunk(start: ir.Value, lanes: int, vectors: int) -> None:
        zero = ir.Constant(ir.VectorType(_FLOAT, lanes), [0.0] * lanes)
        sums = [cgutils.alloca_once_value(builder, zero) for _ in range(vectors)]
        for total in sums:
            builder.store(zero, total)
        with cgutils.for_range(builder, points) as point:
            for corner in range(CORNERS):
                at, factor = _corner(builder, index, weight, stride, point.index, corner, lanes)
                source = builder.add(start, builder.mul(at, row))
                for number, total in enumerate(sums):
                    samples = load(builder, value, source, number, lanes)
                    product = builder.fmul(factor, samples, flags=_CONTRACT)
                    builder.store(builder.fadd(builder.load(total), product, flags=_CONTRACT), total)
        for number, total in enumerate(sums):
            builder.store(builder.load(total), _vector(builder, out, start, number, lanes), align=4)

    _in_chunks(builder, channels, chunk)


@intrinsic
def scatter_rows(typingctx, grad, value, grad_value, index, weight, dots, stride, points, channels, row):
    """grad_value rows += weight * grad; dots (laid out as `weight`) += grad . value row."""

    def emit(builder: ir.IRBuilder, args: list[ir.Value]) -> None:
        grad, value, grad_value, index, weight, dots, stride, points, channels, row = args

        def chunk(start: ir.Value, lanes: int, vectors: int) -> None:
            grads = [builder.load(_vector(builder, grad, start, number, lanes), align=4) for number in range(vectors)]
            with cgutils.for_range(builder, points) as point:
                for corner in range(CORNERS):
                    at, factor = _corner(builder, index, weight, stride, point.index, corner, lanes)
                    source = builder.add(start, builder.mul(at, row))
                    products = None
                    for number, vector in enumerate(grads):
                        samples = builder.load(_vector(builder, value, source, number, lanes), align=4)
                        product = builder.fmul(vector, samples, flags=_CONTRACT)
                        products = product if products is None else builder.fadd(products, product, flags=_CONTRACT)
                        target = _vector(builder, grad_value, source, number, lanes)
                        step = builder.fmul(factor, vector, flags=_CONTRACT)
                        builder.store(
                            builder.fadd(builder.load(target, align=4), step, flags=_CONTRACT), target, align=4
                        )
                    place = _element(builder, dots, _offset(builder, stride, point.index, corner), _FLOAT)
                    total = builder.fadd(builder.load(place), _sum(builder, products, lanes))
                    builder.store(total, place)

        _in_chunks(builder, channels, chunk)

    return _definition(10, emit)


def _definition(arguments: int, emit: Callable[[ir.IRBuilder, list[ir.Value]], None]) -> tuple[Any, Any]:
    """What `intrinsic` wants returned: a signature of integers, and the code generator."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: list[ir.Value]) -> ir.Value:
        emit(builder, args)
        return context.get_dummy_value()

    return types.void(*[types.intp] * arguments), generate


def _in_chunks(builder: ir.IRBuilder, channels: ir.Value, chunk: Callable[[ir.Value, int, int], None]) -> None:
    """Cover 0..channels, the longest vectors first."""
    done: ir.Value = ir.Constant(_INT, 0)
    for lanes, vectors in SHAPES:
        width = ir.Constant(_INT, lanes * vectors)
        end = builder.sub(channels, builder.srem(builder.sub(channels, done), width))
        with cgutils.for_range_slice(builder, done, end, width, intp=_INT) as (start, _):
            chunk(start, lanes, vectors)
        done = end


def _corner(
    builder: ir.IRBuilder,
    index: ir.Value,
    weight: ir.Value,
    stride: ir.Value,
    point: ir.Value,
    corner: int,
    lanes: int,
) -> tuple[ir.Value, ir.Value]:
    """Row number, and the weight in every lane."""
    offset = _offset(builder, stride, point, corner)
    at = builder.sext(builder.load(_element(builder, index, offset, ir.IntType(32))), _INT)
    return at, _everywhere(builder, builder.load(_element(builder, weight, offset, _FLOAT)), lanes)


def _offset(builder: ir.IRBuilder, stride: ir.Value, point: ir.Value, corner: int) -> ir.Value:
    return builder.add(builder.mul(stride, ir.Constant(_INT, corner)), point)


def _element(builder: ir.IRBuilder, address: ir.Value, offset: ir.Value, kind: ir.Type) -> ir.Value:
    return builder.gep(builder.inttoptr(address, kind.as_pointer()), [offset], source_etype=kind)


def _vector(builder: ir.IRBuilder, address: ir.Value, start: ir.Value, number: int, lanes: int) -> ir.Value:
    place = _element(builder, address, builder.add(start, ir.Constant(_INT, number * lanes)), _FLOAT)
    return builder.bitcast(place, ir.VectorType(_FLOAT, lanes).as_pointer())


def _float32_vector(builder: ir.IRBuilder, address: ir.Value, start: ir.Value, number: int, lanes: int) -> ir.Value:
    return builder.load(_vector(builder, address, start, number, lanes), align=4)


def _bfloat16_vector(builder: ir.IRBuilder, address: ir.Value, start: ir.Value, number: int, lanes: int) -> ir.Value:
    """bfloat16 is the upper half of a float32."""
    place = _element(builder, address, builder.add(start, ir.Constant(_INT, number * lanes)), ir.IntType(16))
    halves = builder.load(builder.bitcast(place, ir.VectorType(ir.IntType(16), lanes).as_pointer()), align=2)
    whole = ir.VectorType(ir.IntType(32), lanes)
    shifted = builder.shl(builder.zext(halves, whole), ir.Constant(whole, [16] * lanes))
    return builder.bitcast(shifted, ir.VectorType(_FLOAT, lanes))


def _sum(builder: ir.IRBuilder, vector: ir.Value, lanes: int) -> ir.Value:
    """Sum of the lanes, halves added to halves: one order on every machine."""
    while lanes > 1:
        lanes //= 2
        halves = [
            builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(ir.IntType(32), lanes), list(places)))
            for places in (range(lanes), range(lanes, 2 * lanes))
        ]
        vector = builder.fadd(*halves)
    return builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))


@intrinsic
def multiply_add(typingctx, out, a, b, rows, inner, columns, out_row, a_row, a_column, b_row):
    """out (rows, columns) += a (rows, inner) @ b (inner, columns); `..._row` and `..._column` are steps, in numbers."""

    def emit(builder: ir.IRBuilder, args: list[ir.Value]) -> None:
        out, a, b, rows, inner, columns, out_row, a_row, a_column, b_row = args

        def block(first: ir.Value, height: int) -> None:
            starts = [builder.add(first, ir.Constant(_INT, i)) for i in range(height)]

            def chunk(start: ir.Value, lanes: int, vectors: int) -> None:
                targets = [
                    _vector(builder, out, builder.add(start, builder.mul(row, out_row)), number, lanes)
                    for row in starts
                    for number in range(vectors)
                ]
                sums = [cgutils.alloca_once_value(builder, builder.load(target, align=4)) for target in targets]
                with cgutils.for_range(builder, inner) as step:
                    source = builder.add(start, builder.mul(step.index, b_row))
                    right = [
                        builder.load(_vector(builder, b, source, number, lanes), align=4) for number in range(vectors)
                    ]
                    for i, row in enumerate(starts):
                        at = builder.add(builder.mul(row, a_row), builder.mul(step.index, a_column))
                        left = _everywhere(builder, builder.load(_element(builder, a, at, _FLOAT)), lanes)
                        for total, samples in zip(sums[i * vectors :], right, strict=False):
                            product = builder.fmul(left, samples, flags=_CONTRACT)
                            builder.store(builder.fadd(builder.load(total), product, flags=_CONTRACT), total)
                for total, target in zip(sums, targets, strict=True):
                    builder.store(builder.load(total), target, align=4)

            _in_chunks(builder, columns, chunk)

        done: ir.Value = ir.Constant(_INT, 0)
        for height in HEIGHTS:
            size = ir.Constant(_INT, height)
            end = builder.sub(rows, builder.srem(builder.sub(rows, done), size))
            with cgutils.for_range_slice(builder, done, end, size, intp=_INT) as (first, _):
                block(first, height)
            done = end

    return _definition(10, emit)


def _everywhere(builder: ir.IRBuilder, number: ir.Value, lanes: int) -> ir.Value:
    """The number in every lane."""
    undefined = ir.Constant(ir.VectorType(_FLOAT, lanes), ir.Undefined)
    first = builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0))
    everywhere = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
    return builder.shuffle_vector(first, undefined, everywhere)
