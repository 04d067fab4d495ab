"""A small typed subset of Python that is lowered to LLVM IR: the language in which vyre's own protocol is written.

A native function is plain Python over unsigned 64-bit integers: locals, ``if``, ``while``, ``break``, ``continue``,
``return``, arithmetic, comparisons, ``and``/``or``/``not``, calls of other native functions and of the intrinsics
below. Addresses are integers. The same text has two lives: compiled, it runs in threads without the GIL; executed by
Python over a ``Machine``, it is the model whose interleavings the tests explore. So what is proved is what runs.

Owns: the language, its intrinsics and their IR. Leaves to others: compiling IR (jit), the protocol (ring),
the work (engines/cpu/worker).
"""

from __future__ import annotations

import ast
import functools
import inspect
import linecache
import textwrap
import threading
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, Final, Protocol, TypeVar

_F = TypeVar("_F", bound=Callable[..., int | None])
WORD_MASK: Final = 0xFFFF_FFFF_FFFF_FFFF


class Machine(Protocol):
    """What executes intrinsics when native functions run as plain Python (tests/native_model.py has one)."""

    def intrinsic(self, name: str, args: tuple[int, ...]) -> int: ...


class _Current(threading.local):
    machine: Machine | None = None


current: Final = _Current()
"""The machine that intrinsics of this thread act on when native functions are executed by Python; else None."""


@dataclass(frozen=True, slots=True)
class Intrinsic:
    """One primitive: how many arguments, and the IR it becomes ({0}, {1} are arguments, {r} the i64 result)."""

    name: str
    arity: int
    lines: tuple[str, ...]
    returns: bool = True
    is_bool: bool = False
    meaning: str = ""

    def __call__(self, *args: int) -> int:
        assert len(args) == self.arity, f"{self.name} takes {self.arity} arguments, not {len(args)}"
        assert current.machine is not None, f"{self.name} outside compiled code needs a machine"
        return current.machine.intrinsic(self.name, args)


INTRINSICS: Final[dict[str, Intrinsic]] = {}


def _intrinsic(
    name: str, arity: int, ir: str, meaning: str, *, returns: bool = True, is_bool: bool = False
) -> Intrinsic:
    lines = tuple(line.strip() for line in ir.strip().splitlines())
    INTRINSICS[name] = Intrinsic(name, arity, lines, returns, is_bool, meaning)
    return INTRINSICS[name]


def _load(bits: int, order: str) -> str:
    access = (
        f"load atomic i{bits}, ptr %{{r}}p {order}, align {bits // 8}"
        if order
        else f"load i{bits}, ptr %{{r}}p, align {bits // 8}"
    )
    widen = f"%{{r}} = zext i{bits} %{{r}}v to i64" if bits < 64 else "%{r} = add i64 %{r}v, 0"
    return f"%{{r}}p = inttoptr i64 {{0}} to ptr\n%{{r}}v = {access}\n{widen}"


def _store(bits: int, order: str) -> str:
    narrow = f"%{{r}}v = trunc i64 {{1}} to i{bits}" if bits < 64 else "%{r}v = add i64 {1}, 0"
    access = (
        f"store atomic i{bits} %{{r}}v, ptr %{{r}}p {order}, align {bits // 8}"
        if order
        else f"store i{bits} %{{r}}v, ptr %{{r}}p, align {bits // 8}"
    )
    return f"%{{r}}p = inttoptr i64 {{0}} to ptr\n{narrow}\n{access}"


def _rmw(verb: str, bits: int) -> str:
    if bits == 64:
        return f"%{{r}}p = inttoptr i64 {{0}} to ptr\n%{{r}} = atomicrmw {verb} ptr %{{r}}p, i64 {{1}} seq_cst"
    return (
        f"%{{r}}p = inttoptr i64 {{0}} to ptr\n%{{r}}n = trunc i64 {{1}} to i{bits}\n"
        f"%{{r}}o = atomicrmw {verb} ptr %{{r}}p, i{bits} %{{r}}n seq_cst\n%{{r}} = zext i{bits} %{{r}}o to i64"
    )


# Private memory: one thread at a time by construction.
load8 = _intrinsic("load8", 1, _load(8, ""), "u8 at an address only this thread writes")
load32 = _intrinsic("load32", 1, _load(32, ""), "u32 likewise")
load64 = _intrinsic("load64", 1, _load(64, ""), "u64 likewise")
store8 = _intrinsic("store8", 2, _store(8, ""), "u8 that only this thread and its successors look at", returns=False)
store32 = _intrinsic(
    "store32", 2, _store(32, ""), "u32 that no other thread reads before a later release", returns=False
)
store64 = _intrinsic("store64", 2, _store(64, ""), "u64 likewise", returns=False)
# Shared memory. Every use says in a comment what it pairs with.
load32_acquire = _intrinsic("load32_acquire", 1, _load(32, "acquire"), "u32, what follows stays after it")
load64_acquire = _intrinsic("load64_acquire", 1, _load(64, "acquire"), "u64, what follows stays after it")
load32_seqcst = _intrinsic("load32_seqcst", 1, _load(32, "seq_cst"), "u32, in one order with all read-modify-writes")
load64_seqcst = _intrinsic("load64_seqcst", 1, _load(64, "seq_cst"), "u64, in one order with all read-modify-writes")
load64_relaxed = _intrinsic("load64_relaxed", 1, _load(64, "monotonic"), "u64, no order")
load32_relaxed = _intrinsic("load32_relaxed", 1, _load(32, "monotonic"), "u32, no order")
store32_release = _intrinsic(
    "store32_release", 2, _store(32, "release"), "u32, what precedes stays before it", returns=False
)
store64_release = _intrinsic(
    "store64_release", 2, _store(64, "release"), "u64, what precedes stays before it", returns=False
)
fetch_add64 = _intrinsic("fetch_add64", 2, _rmw("add", 64), "u64 += b, the old value; sequentially consistent")
fetch_add32 = _intrinsic("fetch_add32", 2, _rmw("add", 32), "u32 += b, the old value; sequentially consistent")
fetch_min64 = _intrinsic("fetch_min64", 2, _rmw("umin", 64), "u64 := unsigned min, the old value")
exchange32 = _intrinsic("exchange32", 2, _rmw("xchg", 32), "u32 := b, the old value; sequentially consistent")
cas64 = _intrinsic(
    "cas64",
    3,
    """%{r}p = inttoptr i64 {0} to ptr
    %{r}x = cmpxchg ptr %{r}p, i64 {1}, i64 {2} seq_cst seq_cst
    %{r} = extractvalue {{ i64, i1 }} %{r}x, 1""",
    "true if the u64 was b and is now c; sequentially consistent",
    is_bool=True,
)
compare_swap32 = _intrinsic(
    "compare_swap32",
    3,
    """%{r}p = inttoptr i64 {0} to ptr
    %{r}e = trunc i64 {1} to i32
    %{r}n = trunc i64 {2} to i32
    %{r}x = cmpxchg ptr %{r}p, i32 %{r}e, i32 %{r}n seq_cst seq_cst
    %{r}o = extractvalue {{ i32, i1 }} %{r}x, 0
    %{r} = zext i32 %{r}o to i64""",
    "u32 := c if it was b; the old value; sequentially consistent",
)
fence = _intrinsic("fence", 0, "fence seq_cst", "orders earlier stores before later loads", returns=False)
pause = _intrinsic("pause", 0, "call void @vyre_pause()", "a spinning thread's courtesy", returns=False)
ticks = _intrinsic("ticks", 0, "%{r} = call i64 @llvm.readcyclecounter()", "the engine clock")
now_ns = _intrinsic("now_ns", 0, "%{r} = call i64 @vyre_clock_ns(i32 1)", "CLOCK_MONOTONIC in nanoseconds")
thread_ns = _intrinsic(
    "thread_ns", 0, "%{r} = call i64 @vyre_clock_ns(i32 3)", "processor time of this thread in nanoseconds"
)
futex_wait = _intrinsic(
    "futex_wait", 3, "call void @vyre_futex_wait(i64 {0}, i64 {1}, i64 {2})",
    "sleep while the u32 at a is b, at most c nanoseconds", returns=False,
)  # fmt: skip
futex_wake = _intrinsic(
    "futex_wake", 2, "call void @vyre_futex_wake(i64 {0}, i64 {1})", "wake at most b sleepers on a", returns=False
)
yield_cpu = _intrinsic("yield_cpu", 0, "%{r}x = call i32 @sched_yield()", "let another thread run", returns=False)
pread = _intrinsic(
    "pread", 4, "%{r} = call i64 @vyre_pread(i64 {0}, i64 {1}, i64 {2}, i64 {3})",
    "bytes read from fd a into address b, at most c, from offset d; 2**64 - errno on failure",
)  # fmt: skip
will_need = _intrinsic(
    "will_need", 3, "call void @vyre_will_need(i64 {0}, i64 {1}, i64 {2})",
    "ask the page cache to begin reading fd a from offset b, c bytes", returns=False,
)  # fmt: skip
io_uring_enter = _intrinsic(
    "io_uring_enter", 6, "%{r} = call i64 @vyre_io_uring_enter(i64 {0}, i64 {1}, i64 {2}, i64 {3}, i64 {4}, i64 {5})",
    "the system call over fd a: submit b, wait for c, flags d, argument e of f bytes; 2**64 - errno on failure",
)  # fmt: skip
copy = _intrinsic(
    "copy", 3,
    """%{r}d = inttoptr i64 {0} to ptr
    %{r}s = inttoptr i64 {1} to ptr
    call void @llvm.memmove.p0.p0.i64(ptr %{r}d, ptr %{r}s, i64 {2}, i1 false)""",
    "c bytes from b to a, which may overlap", returns=False,
)  # fmt: skip
zero = _intrinsic(
    "zero", 2,
    """%{r}d = inttoptr i64 {0} to ptr
    call void @llvm.memset.p0.i64(ptr %{r}d, i8 0, i64 {1}, i1 false)""",
    "b zero bytes at a", returns=False,
)  # fmt: skip
call_handler = _intrinsic(
    "call_handler", 3,
    """%{r}f = inttoptr i64 {0} to ptr
    %{r}c = inttoptr i64 {1} to ptr
    %{r}o = inttoptr i64 {2} to ptr
    %{r}n = call ptr %{r}f(ptr %{r}c, ptr %{r}o)
    %{r} = ptrtoint ptr %{r}n to i64""",
    "the next op after handler a ran with context b and op c; 0 at the end",
)  # fmt: skip
call_function = _intrinsic(
    "call_function", 2,
    """%{r}f = inttoptr i64 {0} to ptr
    %{r} = call i64 %{r}f(i64 {1})""",
    "what the function at a gives for b",
)  # fmt: skip
set_float_mode = _intrinsic(
    "set_float_mode", 0, "%{r} = call i64 @vyre_set_float_mode()",
    "IEEE rounding, subnormals kept; the mode that was, for restore_float_mode",
)  # fmt: skip
restore_float_mode = _intrinsic(
    "restore_float_mode", 1, "call void @vyre_restore_float_mode(i64 {0})", "back to a caller's mode", returns=False
)
signed_less = _intrinsic("signed_less", 2, "%{r} = icmp slt i64 {0}, {1}", "a < b as two's complement", is_bool=True)
f64_add = _intrinsic(
    "f64_add", 2,
    """%{r}a = bitcast i64 {0} to double
    %{r}b = bitcast i64 {1} to double
    %{r}s = fadd double %{r}a, %{r}b
    %{r}o = fcmp ord double %{r}s, %{r}s
    %{r}i = bitcast double %{r}s to i64
    %{r} = select i1 %{r}o, i64 %{r}i, i64 9221120237041090560""",
    "bits of a + b as f64, NaN canonical",
)  # fmt: skip


def _f64_of_two(verb: str) -> str:
    return (
        "%{r}a = bitcast i64 {0} to double\n%{r}b = bitcast i64 {1} to double\n"
        f"%{{r}}s = {verb} double %{{r}}a, %{{r}}b\n%{{r}} = bitcast double %{{r}}s to i64"
    )


f64_mul = _intrinsic("f64_mul", 2, _f64_of_two("fmul"), "bits of a * b as f64, which is no NaN")
f64_div = _intrinsic("f64_div", 2, _f64_of_two("fdiv"), "bits of a / b as f64, which is no NaN")
f64_of = _intrinsic(
    "f64_of",
    1,
    "%{r}s = sitofp i64 {0} to double\n%{r} = bitcast double %{r}s to i64",
    "bits of the f64 nearest a signed integer",
)
f32_of = _intrinsic(
    "f32_of", 1,
    """%{r}a = bitcast i64 {0} to double
    %{r}s = fptrunc double %{r}a to float
    %{r}i = bitcast float %{r}s to i32
    %{r} = zext i32 %{r}i to i64""",
    "bits of the f32 nearest the f64 with bits a, which is no NaN",
)  # fmt: skip


def _float_extreme(verb: str, bits: int) -> str:
    kind, nan = ("double", 0x7FF8_0000_0000_0000) if bits == 64 else ("float", 0x7FC0_0000)
    narrow = "" if bits == 64 else "%{r}x = trunc i64 {0} to i32\n%{r}y = trunc i64 {1} to i32\n"
    x, y = ("{0}", "{1}") if bits == 64 else ("%{r}x", "%{r}y")
    widen = "%{r} = add i64 %{r}w, 0" if bits == 64 else "%{r} = zext i32 %{r}w to i64"
    return (
        f"{narrow}%{{r}}a = bitcast i{bits} {x} to {kind}\n%{{r}}b = bitcast i{bits} {y} to {kind}\n"
        f"%{{r}}m = call {kind} @llvm.{verb}.f{bits}({kind} %{{r}}a, {kind} %{{r}}b)\n"
        f"%{{r}}o = fcmp ord {kind} %{{r}}a, %{{r}}b\n%{{r}}i = bitcast {kind} %{{r}}m to i{bits}\n"
        f"%{{r}}w = select i1 %{{r}}o, i{bits} %{{r}}i, i{bits} {nan}\n{widen}"
    )


f64_min = _intrinsic("f64_min", 2, _float_extreme("minimum", 64), "bits of f64.min")
f64_max = _intrinsic("f64_max", 2, _float_extreme("maximum", 64), "bits of f64.max")
f32_min = _intrinsic("f32_min", 2, _float_extreme("minimum", 32), "bits of f32.min")
f32_max = _intrinsic("f32_max", 2, _float_extreme("maximum", 32), "bits of f32.max")

_SYSCALL_FUTEX: Final = {"x86_64": 202, "aarch64": 98}
_SYSCALL_IO_URING_ENTER: Final = 426  # everywhere


def prelude(arch: str) -> str:
    """Declarations and small helper functions that intrinsics call, for one machine architecture."""
    futex = _SYSCALL_FUTEX[arch]
    if arch == "x86_64":
        pause_body = "call void @llvm.x86.sse2.pause()"
        mode = """
declare void @llvm.x86.sse2.pause()
declare void @llvm.x86.sse.stmxcsr(ptr)
declare void @llvm.x86.sse.ldmxcsr(ptr)
define internal i64 @vyre_set_float_mode() alwaysinline {
  %m = alloca i32
  call void @llvm.x86.sse.stmxcsr(ptr %m)
  %v = load i32, ptr %m
  %old = zext i32 %v to i64
  store i32 8064, ptr %m
  call void @llvm.x86.sse.ldmxcsr(ptr %m)
  ret i64 %old
}
define internal void @vyre_restore_float_mode(i64 %old) alwaysinline {
  %m = alloca i32
  %v = trunc i64 %old to i32
  store i32 %v, ptr %m
  call void @llvm.x86.sse.ldmxcsr(ptr %m)
  ret void
}"""
    else:
        pause_body = 'call void asm sideeffect "yield", ""()'
        mode = """
define internal i64 @vyre_set_float_mode() alwaysinline {
  %old = call i64 asm sideeffect "mrs $0, fpcr", "=r"()
  call void asm sideeffect "msr fpcr, $0", "r"(i64 0)
  ret i64 %old
}
define internal void @vyre_restore_float_mode(i64 %old) alwaysinline {
  call void asm sideeffect "msr fpcr, $0", "r"(i64 %old)
  ret void
}"""
    return f"""
declare i64 @llvm.readcyclecounter()
declare void @llvm.memmove.p0.p0.i64(ptr, ptr, i64, i1)
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
declare double @llvm.minimum.f64(double, double)
declare double @llvm.maximum.f64(double, double)
declare float @llvm.minimum.f32(float, float)
declare float @llvm.maximum.f32(float, float)
declare i64 @syscall(i64, ...)
declare i64 @pread64(i32, ptr, i64, i64)
declare ptr @__errno_location()
declare i32 @clock_gettime(i32, ptr)
declare i32 @sched_yield()
declare i32 @posix_fadvise64(i32, i64, i64, i32)
{mode}
define internal void @vyre_pause() alwaysinline {{
  {pause_body}
  ret void
}}
define internal i64 @vyre_clock_ns(i32 %clock) {{
  %t = alloca [2 x i64]
  %x = call i32 @clock_gettime(i32 %clock, ptr %t)
  %s = load i64, ptr %t
  %np = getelementptr [2 x i64], ptr %t, i64 0, i64 1
  %n = load i64, ptr %np
  %m = mul i64 %s, 1000000000
  %r = add i64 %m, %n
  ret i64 %r
}}
define internal void @vyre_futex_wait(i64 %a, i64 %expected, i64 %ns) {{
  %t = alloca [2 x i64]
  %s = udiv i64 %ns, 1000000000
  %n = urem i64 %ns, 1000000000
  store i64 %s, ptr %t
  %np = getelementptr [2 x i64], ptr %t, i64 0, i64 1
  store i64 %n, ptr %np
  %ti = ptrtoint ptr %t to i64
  %r = call i64 (i64, ...) @syscall(i64 {futex}, i64 %a, i64 128, i64 %expected, i64 %ti, i64 0, i64 0)
  ret void
}}
define internal void @vyre_futex_wake(i64 %a, i64 %n) {{
  %r = call i64 (i64, ...) @syscall(i64 {futex}, i64 %a, i64 129, i64 %n, i64 0, i64 0, i64 0)
  ret void
}}
define internal i64 @vyre_pread(i64 %fd, i64 %to, i64 %n, i64 %offset) {{
  %f = trunc i64 %fd to i32
  %p = inttoptr i64 %to to ptr
  %got = call i64 @pread64(i32 %f, ptr %p, i64 %n, i64 %offset)
  %r = call i64 @vyre_or_errno(i64 %got)
  ret i64 %r
}}
define internal void @vyre_will_need(i64 %fd, i64 %offset, i64 %n) {{
  %f = trunc i64 %fd to i32
  %x = call i32 @posix_fadvise64(i32 %f, i64 %offset, i64 %n, i32 3)
  ret void
}}
define internal i64 @vyre_io_uring_enter(i64 %fd, i64 %n, i64 %wait, i64 %flags, i64 %argument, i64 %size) {{
  %got = call i64 (i64, ...) @syscall(i64 {_SYSCALL_IO_URING_ENTER}, i64 %fd, i64 %n, i64 %wait, i64 %flags, i64 %argument, i64 %size)
  %r = call i64 @vyre_or_errno(i64 %got)
  ret i64 %r
}}
define internal i64 @vyre_or_errno(i64 %got) {{
  %bad = icmp slt i64 %got, 0
  br i1 %bad, label %failed, label %good
good:
  ret i64 %got
failed:
  %ep = call ptr @__errno_location()
  %e = load i32, ptr %ep
  %w = zext i32 %e to i64
  %r = sub i64 0, %w
  ret i64 %r
}}
"""


class Unit:
    """A set of native functions that are compiled together.

    ``@unit.function`` registers one and returns it unchanged, so that Python can execute it as well.
    """

    def __init__(self, name: str, *imports: Unit) -> None:
        self.name = name
        self._own: dict[str, FunctionType] = {}
        self._imports = imports

    def function(self, f: _F) -> _F:
        assert isinstance(f, FunctionType)
        self._own[f.__name__] = f
        return f

    @property
    def functions(self) -> dict[str, FunctionType]:
        """All functions, those of imported units first."""
        found: dict[str, FunctionType] = {}
        for unit in self._imports:
            found |= unit.functions
        return found | self._own

    def ir(self, arch: str, exports: Collection[str]) -> str:
        """LLVM IR of all functions, every parameter and result an i64; only ``exports`` can be called from outside."""
        functions = self.functions
        parts = [prelude(arch)]
        parts += [_Lowering(f, functions, f.__name__ in exports).run() for f in functions.values()]
        return "\n".join(parts)


@dataclass(slots=True)
class _Lowering:
    """Lowers one function. Locals live in allocas; LLVM promotes them to registers."""

    function: FunctionType
    known: dict[str, FunctionType]
    exported: bool
    lines: list[str] = field(default_factory=list)
    count: int = 0
    loops: list[tuple[str, str]] = field(default_factory=list)
    locals: set[str] = field(default_factory=set)
    done: bool = False

    def run(self) -> str:
        tree = _parse(self.function)
        params = [a.arg for a in tree.args.args]
        self.locals = set(params) | {
            n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
        }
        linkage = "" if self.exported else "internal "
        head = [
            f"define {linkage}i64 @{self.function.__name__}({', '.join(f'i64 %arg.{p}' for p in params)}) {{",
            "entry:",
        ]
        head += [f"  %v.{name} = alloca i64" for name in sorted(self.locals)]
        head += [f"  store i64 %arg.{p}, ptr %v.{p}" for p in params]
        self.block(tree.body)
        if not self.done:
            self.emit("ret i64 0")
        return "\n".join([*head, *self.lines, "}", ""])

    # --- plumbing ---------------------------------------------------------------------------------------------

    def fresh(self) -> str:
        self.count += 1
        return f"t{self.count}"

    def emit(self, line: str) -> None:
        self.lines.append("  " + line)

    def label(self, name: str) -> None:
        if not self.done:
            self.emit(f"br label %{name}")
        self.lines.append(f"{name}:")
        self.done = False

    def jump(self, name: str) -> None:
        if not self.done:
            self.emit(f"br label %{name}")
        self.done = True

    def refuse(self, node: ast.AST, what: str) -> Exception:
        code = self.function.__code__
        line = code.co_firstlineno + getattr(node, "lineno", 1) - 1
        return SyntaxError(f"{code.co_filename}:{line}: native function {self.function.__name__}: {what}")

    # --- statements -------------------------------------------------------------------------------------------

    def block(self, body: Iterable[ast.stmt]) -> None:
        for node in body:
            if self.done:
                raise self.refuse(node, "unreachable statement")
            self.statement(node)

    def statement(self, node: ast.stmt) -> None:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                self.emit(f"store i64 {self.value(value)}, ptr %v.{name}")
            case ast.AugAssign(target=ast.Name(id=name) as target, op=op, value=value):
                left = ast.Name(id=name, ctx=ast.Load())
                whole = ast.copy_location(ast.BinOp(left=left, op=op, right=value), target)
                self.emit(f"store i64 {self.value(whole)}, ptr %v.{name}")
            case ast.Expr(value=ast.Constant(value=str())) | ast.Pass():
                pass
            case ast.Expr(value=ast.Call() as call):
                self.call(call)
            case ast.Return(value=value):
                self.emit(f"ret i64 {self.value(value) if value is not None else 0}")
                self.done = True
            case ast.If(test=test, body=body, orelse=orelse):
                self.branch(test, body, orelse)
            case ast.While(test=test, body=body, orelse=[]):
                self.loop(test, body)
            case ast.Break() if self.loops:
                self.jump(self.loops[-1][1])
            case ast.Continue() if self.loops:
                self.jump(self.loops[-1][0])
            case _:
                raise self.refuse(node, f"{type(node).__name__} is not in the language")

    def branch(self, test: ast.expr, body: list[ast.stmt], orelse: list[ast.stmt]) -> None:
        n = self.fresh()
        then, other, after = f"{n}.then", f"{n}.else", f"{n}.end"
        self.emit(f"br i1 {self.truth(test)}, label %{then}, label %{other}")
        self.lines.append(f"{then}:")
        self.block(body)
        then_done = self.done
        self.jump(after)
        self.lines.append(f"{other}:")
        self.done = False
        self.block(orelse)
        both_done = then_done and self.done
        self.jump(after)
        if not both_done:
            self.lines.append(f"{after}:")
            self.done = False

    def loop(self, test: ast.expr, body: list[ast.stmt]) -> None:
        n = self.fresh()
        top, inside, after = f"{n}.while", f"{n}.do", f"{n}.end"
        self.label(top)
        self.emit(f"br i1 {self.truth(test)}, label %{inside}, label %{after}")
        self.lines.append(f"{inside}:")
        self.loops.append((top, after))
        self.block(body)
        self.loops.pop()
        self.jump(top)
        self.lines.append(f"{after}:")
        self.done = False

    # --- expressions ------------------------------------------------------------------------------------------

    def truth(self, node: ast.expr) -> str:
        """An i1."""
        match node:
            case ast.Constant(value=bool(value)):
                return str(value).lower()
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                verb = _COMPARE.get(type(op))
                if verb is None:
                    raise self.refuse(node, f"{type(op).__name__} is not in the language")
                a, b, r = self.value(left), self.value(right), self.fresh()
                self.emit(f"%{r} = icmp {verb} i64 {a}, {b}")
                return f"%{r}"
            case ast.BoolOp(op=op, values=values):
                return self.shortcut(isinstance(op, ast.And), values)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                a, r = self.truth(operand), self.fresh()
                self.emit(f"%{r} = xor i1 {a}, true")
                return f"%{r}"
            case ast.Call(func=ast.Name(id=name)) if isinstance(i := self.resolve(name), Intrinsic) and i.is_bool:
                return self.call(node)
            case _:
                a, r = self.value(node), self.fresh()
                self.emit(f"%{r} = icmp ne i64 {a}, 0")
                return f"%{r}"

    def shortcut(self, is_and: bool, values: list[ast.expr]) -> str:
        n = self.fresh()
        cell, after = f"{n}.cell", f"{n}.end"
        self.lines.insert(0, f"  %{cell} = alloca i1")
        for i, value in enumerate(values):
            t = self.truth(value)
            self.emit(f"store i1 {t}, ptr %{cell}")
            if i + 1 < len(values):
                more = f"{n}.{i}"
                yes, no = (more, after) if is_and else (after, more)
                self.emit(f"br i1 {t}, label %{yes}, label %{no}")
                self.lines.append(f"{more}:")
        self.emit(f"br label %{after}")
        self.lines.append(f"{after}:")
        r = self.fresh()
        self.emit(f"%{r} = load i1, ptr %{cell}")
        return f"%{r}"

    def value(self, node: ast.expr) -> str:
        """An i64 operand."""
        match node:
            case ast.Constant(value=int(number)) if not isinstance(number, bool):
                return _literal(number)
            case ast.Name(id=name) if name in self.locals:
                r = self.fresh()
                self.emit(f"%{r} = load i64, ptr %v.{name}")
                return f"%{r}"
            case ast.Name() | ast.Attribute():
                return _literal(self.constant(node))
            case ast.BinOp(left=left, op=op, right=right):
                verb = _BINARY.get(type(op))
                if verb is None:
                    raise self.refuse(node, f"{type(op).__name__} is not in the language")
                a, b, r = self.value(left), self.value(right), self.fresh()
                self.emit(f"%{r} = {verb} i64 {a}, {b}")
                return f"%{r}"
            case ast.Call(func=ast.Name(id=name)) if not (isinstance(i := self.resolve(name), Intrinsic) and i.is_bool):
                return self.call(node)
            case ast.Compare() | ast.BoolOp() | ast.UnaryOp(op=ast.Not()) | ast.Call():
                t, r = self.truth(node), self.fresh()
                self.emit(f"%{r} = zext i1 {t} to i64")
                return f"%{r}"
            case _:
                raise self.refuse(node, f"{type(node).__name__} is not in the language")

    def call(self, node: ast.expr) -> str:
        assert isinstance(node, ast.Call)
        assert isinstance(node.func, ast.Name)
        target = self.resolve(node.func.id)
        args = [self.value(a) for a in node.args]
        r = self.fresh()
        if isinstance(target, Intrinsic):
            if len(args) != target.arity:
                raise self.refuse(node, f"{target.name} takes {target.arity} arguments, not {len(args)}")
            for line in target.lines:
                self.emit(line.format(*args, r=r))
        elif isinstance(target, FunctionType) and self.known.get(target.__name__) is target:
            want = target.__code__.co_argcount
            if len(args) != want:
                raise self.refuse(node, f"{target.__name__} takes {want} arguments, not {len(args)}")
            self.emit(f"%{r} = call i64 @{target.__name__}({', '.join(f'i64 {a}' for a in args)})")
        else:
            raise self.refuse(node, f"{node.func.id} is neither an intrinsic nor a function of this unit")
        return f"%{r}"

    def resolve(self, name: str) -> Any:
        return self.function.__globals__.get(name)

    def constant(self, node: ast.expr) -> int:
        found: Any = None
        if isinstance(node, ast.Name):
            found = self.resolve(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found = getattr(self.resolve(node.value.id), node.attr, None)
        if not isinstance(found, int):
            raise self.refuse(node, f"{ast.unparse(node)} is neither a local nor an integer constant")
        return int(found)


_BINARY: Final[dict[type[ast.operator], str]] = {
    ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.FloorDiv: "udiv", ast.Mod: "urem", ast.BitAnd: "and",
    ast.BitOr: "or", ast.BitXor: "xor", ast.LShift: "shl", ast.RShift: "lshr",
}  # fmt: skip
_COMPARE: Final[dict[type[ast.cmpop], str]] = {
    ast.Eq: "eq", ast.NotEq: "ne", ast.Lt: "ult", ast.LtE: "ule", ast.Gt: "ugt", ast.GtE: "uge",
}  # fmt: skip


def _literal(number: int) -> str:
    """The same 64 bits as LLVM writes an i64."""
    word = int(number) & WORD_MASK
    return str(word - (1 << 64) if word >> 63 else word)


@functools.cache
def _parse(f: FunctionType) -> ast.FunctionDef:
    tree = ast.parse(_source(f)).body[0]
    assert isinstance(tree, ast.FunctionDef)
    return tree


def _source(f: FunctionType) -> str:
    """A function's text: what inspect gives, without its tokenizing, which took most of an engine's start."""
    code = f.__code__
    lines = linecache.getlines(code.co_filename, f.__globals__)
    start = code.co_firstlineno - 1
    if start >= len(lines) or lines[start][:1].isspace():
        return textwrap.dedent(inspect.getsource(f))
    end = start
    while not lines[end].startswith("def "):
        end += 1
    end += 1
    while end < len(lines) and lines[end][:1] in " )\n":  # a signature of several lines closes at the margin
        end += 1
    return "".join(lines[start:end])
