"""LLVM IR text in, addresses of native functions out.

Owns: LLVM's initialisation, the optimisation pipeline, the key under which an object file is kept, and the lifetime of
loaded code (the process). Leaves to others: what the IR says (templates, worker), and where bytes are kept (store).

Nothing here is imported before the first compile: ``import vyre`` does not load LLVM.
"""

from __future__ import annotations

import platform
import threading
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Final, Protocol

from vyre.errors import EngineUnavailable

PIPELINE: Final = "O3 loop-vectorize slp, brief, 2"
"""Part of every key: change it with anything below that changes what comes out of the same IR."""


class ObjectStore(Protocol):
    """What is needed of ``vyre.store.Store``: bytes by key, None when there are none that are whole."""

    def get(self, key: bytes) -> bytes | None: ...

    def put(self, key: bytes, data: bytes) -> None: ...


class _Host:
    """LLVM's idea of this machine; made once."""

    def __init__(self) -> None:
        try:
            import llvmlite
            import llvmlite.binding as llvm
        except ImportError as error:
            raise EngineUnavailable(
                f"engine cpu compiles with llvmlite, which cannot be imported: {error}",
                fix="install llvmlite 0.45 or later, or take engine reference",
            ) from error
        self.llvm: Any = llvm
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        llvm.initialize_native_asmparser()
        self.cpu: str = llvm.get_host_cpu_name()
        self.features: str = llvm.get_host_cpu_features().flatten()
        self.triple: str = llvm.get_process_triple()
        version = ".".join(str(part) for part in llvm.llvm_version_info)
        words = (PIPELINE, self.cpu, self.features, self.triple, platform.machine(), version, llvmlite.__version__)
        self.identity: bytes = "\0".join(words).encode()
        self.machine = self.new_machine()
        self.engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), self.new_machine())

    def new_machine(self) -> Any:
        target = self.llvm.Target.from_triple(self.triple)
        return target.create_target_machine(
            cpu=self.cpu, features=self.features, opt=3, reloc="default", codemodel="jitdefault", jit=True
        )

    def optimise(self, ir_text: str, brief: bool) -> Any:
        """The module of ``ir_text``, verified and run through the O3 pipeline or the brief one."""
        module = self.llvm.parse_assembly(ir_text)
        module.triple = self.triple
        module.data_layout = str(self.machine.target_data)
        module.verify()
        options = self.llvm.create_pipeline_tuning_options(speed_level=3)
        options.loop_vectorization = True
        options.slp_vectorization = True
        options.loop_interleaving = True
        options.loop_unrolling = True
        builder = self.llvm.create_pass_builder(self.machine, options)
        if (
            brief
        ):  # no combining of instructions: LLVM may choose any NaN, so it removes a fix-up where it can prove one
            passes = self.llvm.create_new_module_pass_manager()
            passes.add_always_inliner_pass()
            passes.add_global_dead_code_eliminate_pass()
            passes.add_sroa_pass()
            passes.add_simplify_cfg_pass()
        else:
            passes = builder.getModulePassManager()
        passes.run(module, builder)
        return module


_lock = threading.Lock()
_host: _Host | None = None
_loaded: dict[bytes, dict[str, int]] = {}
_objects: list[Any] = []  # object files stay referenced as long as their code may run: for ever


def _the_host() -> _Host:
    """Caller holds the lock."""
    global _host
    if _host is None:
        _host = _Host()
    return _host


def host_cpu() -> str:
    """LLVM's name of this machine's processor, as ``znver4``."""
    with _lock:
        return _the_host().cpu


def host_has(feature: str) -> bool:
    """Whether this machine has a feature by LLVM's name, as ``avx512vl``."""
    with _lock:
        return f"+{feature}" in _the_host().features.split(",")


def object_key(ir_text: str, *, brief: bool = False) -> bytes:
    """Store key of the object file of ``ir_text`` on this machine with this LLVM: 32 bytes."""
    with _lock:
        return _key(_the_host(), ir_text, brief)


def _key(host: _Host, ir_text: str, brief: bool) -> bytes:
    kind = b"vyre cpu object, brief\0" if brief else b"vyre cpu object\0"
    return blake2b(kind + host.identity + b"\0" + ir_text.encode(), digest_size=32).digest()


def compile_ir(
    ir_text: str, names: Sequence[str], store: ObjectStore | None = None, *, brief: bool = False
) -> dict[str, int]:
    """Compile a module for this machine, or take its object file from the store, and load it for good.

    Args:
        ir_text: a module without triple and data layout. Symbols it defines must be unique in the process unless the
            text is the same (the same text is loaded once).
        names: functions whose addresses are wanted.
        store: where object files are kept; None compiles every new text.
        brief: inline, clean up and generate code, no more: for IR that is already written as vectors. A third of the
            time of the full pipeline.
    Returns:
        Address of each name. The code stays loaded until the process ends.
    Raises:
        EngineUnavailable: llvmlite is not installed.
        RuntimeError: the IR does not parse or verify, or a name is not defined: a bug of ours.
    """
    with _lock:
        host = _the_host()
        key = _key(host, ir_text, brief)
        found = _loaded.setdefault(key, {})
        if all(name in found for name in names):
            return {name: found[name] for name in names}
        if not found:
            _load(host, key, ir_text, store, brief)
        for name in names:
            address = host.engine.get_function_address(name)
            if not address:
                raise RuntimeError(f"compiled module defines no function {name!r}")
            found[name] = address
        return {name: found[name] for name in names}


def _load(host: _Host, key: bytes, ir_text: str, store: ObjectStore | None, brief: bool) -> None:
    data = store.get(key) if store is not None else None
    if data is None:
        data = host.machine.emit_object(host.optimise(ir_text, brief))
        if store is not None:
            store.put(key, data)
    image = host.llvm.ObjectFileRef.from_data(data)
    host.engine.add_object_file(image)
    host.engine.finalize_object()
    _objects.append((image, data))


def assembly(ir_text: str, *, brief: bool = False) -> str:
    """What ``ir_text`` becomes on this machine, as assembler text, for ``vyre dis`` and tests."""
    with _lock:
        host = _the_host()
        return str(host.machine.emit_assembly(host.optimise(ir_text, brief)))
