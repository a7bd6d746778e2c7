"""Compiles every Triton kernel for a GPU that need not be there, and prints what came out.

Run as a program, without TRITON_INTERPRET, which Triton reads when kernels are defined:
`python tests/ops/compile_kernels.py 80:bfloat16 90:float32`, each a compute capability and a dtype
of the rows. Each operation is called as on a GPU, but a launch compiles the kernel, down to machine
code by Triton's own assembler, instead of running it. One line per kernel and variant: capability,
kernel, bytes of machine code, whether its assert is in there, whether its warps wait for each other
between the last number read and the first one written, and what distinguishes the variant.
"""

import sys
from types import SimpleNamespace

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from varemb.ops.triton import IMPLEMENTATIONS, launch
from varemb.ops.triton.mixture import lookup_moments

POINTERS = {
    torch.float32: "*fp32", torch.float64: "*fp64", torch.float16: "*fp16",
    torch.bfloat16: "*bf16", torch.uint8: "*u8", torch.int16: "*i16", torch.int32: "*i32",
    torch.int64: "*i64",
}  # fmt: skip
ROWS, WIDTH, LOOKUPS, BAGS, FIELDS, OUTPUTS = 4800, 128, 6000, 300, 3, 100
MANY_LOOKUPS = 66000  # enough for a launch per class of dims
CAPABILITY = [0]
HYPER = torch.ones(6, dtype=torch.float64)
SEEN = set()


def compile_launch(kernel, *, grid, warmup, debug, sanitize_overflow, enable_fp_fusion, **given):
    """Stands in for a launch."""
    signature, constants, shown = {}, {}, []
    for parameter in kernel.params:
        name, value = parameter.name, given.pop(parameter.name)
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            signature[name], constants[name] = "constexpr", value
            shown.append(f"{name}={value}" if parameter.is_constexpr else f"{name}:{value}")
        elif isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
    assert not given, f"{kernel.fn.__name__} takes no {given}"
    options = {"debug": debug, "sanitize_overflow": sanitize_overflow}
    options["enable_fp_fusion"] = enable_fp_fusion
    variant = (CAPABILITY[0], kernel.fn.__name__, str(signature), str(constants))
    if variant in SEEN:
        return
    SEEN.add(variant)
    target = GPUTarget("cuda", CAPABILITY[0], 32)
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=target, options=options)
    size, text = len(compiled.asm["cubin"]), compiled.asm["ptx"]
    waits = "bar.sync" in text.partition("st.global")[0].rpartition("ld.global")[2]
    has_assert = "__assertfail" in text
    print(CAPABILITY[0], kernel.fn.__name__, size, has_assert, waits, *shown, flush=True)


def call_lookups(dtype, index_dtype):
    """The forward operations with every option."""
    where = (ROWS, WIDTH, 1)
    values, index = torch.zeros(ROWS * 8, dtype=dtype), torch.zeros(200, 4, dtype=torch.int64)
    indices = torch.zeros(LOOKUPS, dtype=index_dtype)
    offsets = torch.arange(0, LOOKUPS, 20, dtype=index_dtype)
    limit = torch.zeros(LOOKUPS, dtype=torch.int32)
    weights = torch.ones(LOOKUPS, dtype=dtype)
    ops = SimpleNamespace(**IMPLEMENTATIONS)
    ops.lookup(values, index, indices, None, *where)
    ops.lookup(values, index, indices, limit, *where)
    for pooling, weight, cut in (
        (0, None, None),
        (0, weights, limit),
        (1, None, None),
        (2,) + 2 * (None,),
    ):
        bag = (values, index, indices, offsets, weight, cut, *where, pooling, -1)
        ops.lookup_bag(*bag, pooling == 1)
    grad = torch.zeros(BAGS, WIDTH, dtype=dtype)
    ops.lookup_bag_weights_backward(grad, values, index, indices, offsets, None, ROWS, 1, -1, False)
    groups = torch.zeros(FIELDS, WIDTH + 1, 2, dtype=torch.int64)
    weight, bias = torch.zeros(300, OUTPUTS, dtype=dtype), torch.zeros(4, OUTPUTS, dtype=dtype)
    linear = (values, index, indices, groups, weight, bias, *where)
    ops.lookup_linear(*linear)
    paged = torch.zeros(ROWS // 2 + 30, dtype=torch.int64)
    ops.lookup(values, paged, indices, limit, *where)
    ops.lookup_bag(values, paged, indices, offsets, weights, limit, *where, 0, -1, False)
    ops.lookup_linear(values, paged, *linear[2:])
    lookup_moments(values, index, indices, FIELDS, *where)
    ops.lookup_linear_backward(torch.zeros(LOOKUPS, OUTPUTS, dtype=dtype), *linear)


def call_gradients(dtype, index_dtype):
    """The gradient operations with every form, optimizer and kind of lookup."""
    values, index = torch.zeros(ROWS * 8, dtype=dtype), torch.zeros(200, 4, dtype=torch.int64)
    indices = torch.zeros(LOOKUPS, dtype=index_dtype)
    offsets = torch.arange(0, LOOKUPS, 20, dtype=index_dtype)
    weights, limit = torch.ones(LOOKUPS, dtype=dtype), torch.zeros(1, dtype=torch.int32)
    winners = torch.zeros(BAGS, WIDTH, dtype=torch.int32)
    ops = SimpleNamespace(**IMPLEMENTATIONS)
    rows_grad, bags_grad = (torch.zeros(n, WIDTH, dtype=dtype) for n in (LOOKUPS, BAGS))
    last = (-1, False)
    plain = (rows_grad, index, indices, None, None, None, None, ROWS, 1, 0, *last)
    weighted = (bags_grad, index, indices, offsets, weights, limit, None, ROWS, 1, 0, *last)
    mean = (bags_grad, index, indices, offsets, None, None, None, ROWS, 1, 1, *last)
    largest = (bags_grad, index, indices, offsets, None, None, winners, ROWS, 1, 2, *last)
    many = (torch.zeros(MANY_LOOKUPS, WIDTH, dtype=dtype), index, torch.zeros(MANY_LOOKUPS).long())
    for call in (many + plain[3:], plain, weighted, mean, largest):
        ops.coalesce_dense(*call, values.numel())
    ops.coalesce(*weighted, values.numel())
    paged = torch.zeros(ROWS // 2 + 30, dtype=torch.int64)
    ops.coalesce_dense(rows_grad, paged, *plain[2:], values.numel())
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    state, row_state = torch.zeros(ROWS * 8, dtype=wide), torch.zeros(ROWS, dtype=wide)
    positions, grad = torch.arange(5000), torch.zeros(5000, dtype=dtype)
    rounding = torch.zeros(2, dtype=torch.int64) if dtype.itemsize == 2 else None
    for algorithm, states in enumerate(
        [(None, None), (state, None), (row_state, None), (state, state)]
    ):
        table = (values, *states, HYPER, rounding)
        ops.update_(*table, index, positions, grad, ROWS, WIDTH, 1, algorithm)
        ops.coalesce_update_(*table, *plain, algorithm)


def main(targets):
    triton.JITFunction.run = compile_launch
    launch.is_interpreted = lambda tensor: False
    torch.cuda.get_device_properties = lambda device: SimpleNamespace(multi_processor_count=132)
    torch.empty = torch.zeros  # kernels do not run, so nothing else would fill it
    for target in targets:
        capability, name = target.split(":")
        CAPABILITY[0], dtype = int(capability), getattr(torch, name)
        index_dtype = torch.int32 if dtype.itemsize == 2 else torch.int64
        call_lookups(dtype, index_dtype)
        call_gradients(dtype, index_dtype)
        numbers, moves = torch.zeros(9, dtype=dtype), torch.zeros(100, 4, dtype=torch.int64)
        IMPLEMENTATIONS["repack_"](numbers, numbers, moves)


if __name__ == "__main__":
    main(sys.argv[1:])
