"""CUDA's driver library, as much of it as the stepper needs: memory, launches, graphs. Loaded with ctypes.

    gpu = Gpu()                        # CudaError, with the reason and what to do, where there is no usable GPU
    memory = gpu.allocate(1024)

Every call that fails raises CudaError. After a sticky error (an illegal address, a launch that timed out) every later
call of the process fails, too: StepperError.is_final.

Why not cuda-bindings: the 30 functions used here have had the same C signatures for ten years, those of cuda-bindings
change with CUDA's major version, and torch's builds for a CPU do not bring it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.stepper import StepperError

LIBRARY = "libcuda.so.1"
MIN_DRIVER = 12000
"""The oldest driver, as cuDriverGetVersion counts: CUDA 12.0."""
MIN_CAPABILITY = (7, 5)
_NO_DEVICE, _OUT_OF_MEMORY = 100, 2
# Errors after which a process can no longer use its context; see the list of cudaError_t in CUDA's documentation.
# 999 is what a GPU answers that is gone from the bus.
_STICKY = {4, 46, 201, 214, 220, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 802, 999}
_MAJOR, _MINOR, _PROCESSORS = 75, 76, 16  # CUdevice_attribute
_REGISTERS, _LOCAL_BYTES, _SHARED_BYTES = 4, 3, 1  # CUfunction_attribute
_THREAD_LOCAL = 1  # CUstreamCaptureMode: another thread may load the next model meanwhile
_NON_BLOCKING = 1
_OVERLAP = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
_MIN_OVERLAP = ((9, 0), 12040)  # the capability, and the driver that captures such launches into graphs


class _LaunchAttribute(ctypes.Structure):
    """CUlaunchAttribute, with the one value that is used."""

    _fields_ = [("id", c_int), ("padding", c_int), ("value", c_int), ("rest", c_int * 15)]


class _LaunchConfig(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = [
        ("grid", c_uint * 3),
        ("block", c_uint * 3),
        ("shared_bytes", c_uint),
        ("stream", c_void_p),
        ("attributes", ctypes.POINTER(_LaunchAttribute)),
        ("n_attributes", c_uint),
    ]


class CudaError(StepperError):
    """Raised when there is no usable GPU, or when a call of the driver fails."""

    def __init__(self, message: str, code: int = 0, *, is_final: bool = False) -> None:
        """Keep the driver's code."""
        super().__init__(message, is_final=is_final or code in _STICKY)
        self.code = code


def is_installed() -> bool:
    """Whether NVIDIA's driver is on this machine."""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return False
    return True


class _Driver:
    """The library's functions as methods; each raises CudaError unless it returns 0."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise CudaError(f"no NVIDIA driver: {error}. Install the driver, or use the CPU") from error

    def __getattr__(self, name: str) -> Callable[..., None]:
        function = getattr(self._library, name)

        def call(*arguments: Any) -> None:
            code: int = function(*arguments)
            if code:
                raise CudaError(f"{name} failed: {self._describe(code)}", code)

        setattr(self, name, call)
        return call

    def _describe(self, code: int) -> str:
        parts = []
        for function in (self._library.cuGetErrorName, self._library.cuGetErrorString):
            text = c_char_p()
            if function(code, byref(text)) == 0 and text.value:
                parts.append(text.value.decode())
        return f"{code} {': '.join(parts)}".rstrip()


@dataclass(frozen=True, slots=True)
class Resources:
    """What one thread, or one block, of a kernel uses."""

    registers: int
    local_bytes: int  # spilled registers, and arrays with a computed index
    shared_bytes: int


class Gpu:
    """One GPU: its primary context, which torch uses as well, and a stream of its own."""

    def __init__(self, ordinal: int = 0) -> None:
        """Open a GPU.

        Raises:
            CudaError: There is no driver, it is too old, or there is no such GPU.
        """
        self._driver = driver = _Driver()
        try:
            driver.cuInit(0)
        except CudaError as error:
            if error.code != _NO_DEVICE:
                raise
            raise CudaError("the NVIDIA driver finds no GPU", error.code) from error
        version = c_int()
        driver.cuDriverGetVersion(byref(version))
        self.driver_version = version.value
        if version.value < MIN_DRIVER:
            raise CudaError(
                f"the NVIDIA driver is too old: it has CUDA {_version(version.value)}, "
                f"expected {_version(MIN_DRIVER)} or later"
            )
        count, device = c_int(), c_int()
        driver.cuDeviceGetCount(byref(count))
        if ordinal >= count.value:
            raise CudaError(f"there is no GPU {ordinal}: the driver finds {count.value}")
        driver.cuDeviceGet(byref(device), ordinal)
        name = ctypes.create_string_buffer(128)
        driver.cuDeviceGetName(name, len(name), device)
        self.name = name.value.decode()
        self.capability = (self._attribute(_MAJOR, device), self._attribute(_MINOR, device))
        self.processors = self._attribute(_PROCESSORS, device)
        if self.capability < MIN_CAPABILITY:
            raise CudaError(
                f"{self.name} has compute capability {_dotted(self.capability)}, "
                f"expected {_dotted(MIN_CAPABILITY)} or later"
            )
        self._has_overlap = self.capability >= _MIN_OVERLAP[0] and self.driver_version >= _MIN_OVERLAP[1]
        total = c_size_t()
        driver.cuDeviceTotalMem_v2(byref(total), device)
        self.memory_bytes = total.value
        self._context = c_void_p()
        driver.cuDevicePrimaryCtxRetain(byref(self._context), device)
        self._device = device
        self.enter()
        self._stream = c_void_p()
        driver.cuStreamCreate(byref(self._stream), _NON_BLOCKING)

    @property
    def cuda(self) -> str:
        """The newest version of CUDA that the driver has: "13.0"."""
        return _version(self.driver_version)

    @property
    def architecture(self) -> str:
        """The compiler's name for the GPU's architecture: "sm_90"."""
        return "sm_{}{}".format(*self.capability)

    def free_bytes(self) -> int:
        """The memory that nobody uses."""
        free, total = c_size_t(), c_size_t()
        self._driver.cuMemGetInfo_v2(byref(free), byref(total))
        return free.value

    def enter(self) -> None:
        """Make the GPU's context the one that this thread's calls use."""
        self._driver.cuCtxSetCurrent(self._context)

    def close(self) -> None:
        """Free the stream and let go of the context."""
        if self._stream:
            stream, self._stream = self._stream, c_void_p()
            self._driver.cuStreamDestroy_v2(stream)
            self._driver.cuDevicePrimaryCtxRelease_v2(self._device)

    def allocate(self, n_bytes: int) -> int:
        """Allocate memory, filled with zeros; returns its address.

        Raises:
            CudaError: There is not enough memory.
        """
        pointer = c_uint64()
        try:
            self._driver.cuMemAlloc_v2(byref(pointer), c_size_t(max(n_bytes, 16)))
        except CudaError as error:
            if error.code != _OUT_OF_MEMORY:
                raise
            free = self.free_bytes() >> 20
            message = f"not enough GPU memory: {n_bytes >> 20} MiB were needed, {free} MiB of {self.name} are free"
            raise CudaError(message, error.code) from error
        self._driver.cuMemsetD8Async(pointer, 0, c_size_t(max(n_bytes, 16)), self._stream)
        return pointer.value

    def free(self, address: int) -> None:
        """Free memory."""
        self._driver.cuMemFree_v2(c_uint64(address))

    def host_array(self, n_words: int) -> tuple[NDArray[np.int32], int]:
        """Allocate page-locked memory of the host; returns it as int32, and its address, which `free_host` takes."""
        pointer = c_void_p()
        self._driver.cuMemAllocHost_v2(byref(pointer), c_size_t(4 * n_words))
        address = pointer.value or 0
        return np.ctypeslib.as_array((ctypes.c_int32 * n_words).from_address(address)), address

    def free_host(self, address: int) -> None:
        """Free memory of `host_array`."""
        self._driver.cuMemFreeHost(c_void_p(address))

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Copy a contiguous array to the GPU. A page-locked one must not change until the next `wait`."""
        self._driver.cuMemcpyHtoDAsync_v2(
            c_uint64(address), c_void_p(array.ctypes.data), c_size_t(array.nbytes), self._stream
        )

    def download(self, array: NDArray[Any], address: int) -> None:
        """Copy from the GPU into a contiguous array; it is there after the next `wait`."""
        self._driver.cuMemcpyDtoHAsync_v2(
            c_void_p(array.ctypes.data), c_uint64(address), c_size_t(array.nbytes), self._stream
        )

    def clear(self, address: int, n_bytes: int) -> None:
        """Fill memory with zeros."""
        self._driver.cuMemsetD8Async(c_uint64(address), 0, c_size_t(n_bytes), self._stream)

    def wait(self) -> None:
        """Wait until everything that was given to the stream is done."""
        self._driver.cuStreamSynchronize(self._stream)

    def load(self, cubin: bytes) -> Module:
        """Load compiled kernels."""
        module = c_void_p()
        self._driver.cuModuleLoadData(byref(module), cubin)
        return Module(self._driver, module)

    def launch(
        self,
        kernel: c_void_p,
        grid: tuple[int, int],
        threads: int,
        parameters: ctypes.Array[c_void_p],
        overlaps: bool = False,
    ) -> None:
        """Give a kernel to the stream; or, while a graph is captured, to the graph.

        Args:
            kernel: From `Module.kernel`.
            grid: Blocks in x and y.
            threads: Of a block.
            parameters: The addresses of the kernel's arguments, which are copied.
            overlaps: The kernel may start before the one before it is done, and waits itself. Ignored where the GPU
                cannot do that.
        """
        attribute = _LaunchAttribute(_OVERLAP, 0, 1)
        config = _LaunchConfig((*grid, 1), (threads, 1, 1), 0, self._stream, ctypes.pointer(attribute), 0)
        config.n_attributes = int(overlaps and self._has_overlap)
        self._driver.cuLaunchKernelEx(byref(config), kernel, parameters, None)

    def capture(self, launches: Callable[[], None]) -> Graph:
        """Make a graph of what `launches` launches."""
        self._driver.cuStreamBeginCapture_v2(self._stream, c_int(_THREAD_LOCAL))
        graph = c_void_p()
        try:
            launches()
        finally:
            self._driver.cuStreamEndCapture(self._stream, byref(graph))
        executable = c_void_p()
        try:
            self._driver.cuGraphInstantiateWithFlags(byref(executable), graph, c_uint64(0))
        finally:
            self._driver.cuGraphDestroy(graph)
        return Graph(self._driver, executable, self._stream)

    def _attribute(self, attribute: int, device: c_int) -> int:
        value = c_int()
        self._driver.cuDeviceGetAttribute(byref(value), c_int(attribute), device)
        return value.value


class Module:
    """Compiled kernels on a GPU."""

    def __init__(self, driver: _Driver, handle: c_void_p) -> None:
        """Keep what `Gpu.load` loaded."""
        self._driver, self._handle = driver, handle

    def kernel(self, name: str) -> c_void_p:
        """Find a kernel."""
        function = c_void_p()
        self._driver.cuModuleGetFunction(byref(function), self._handle, name.encode())
        return function

    def resources(self, name: str) -> Resources:
        """What a kernel uses."""
        values = []
        for attribute in (_REGISTERS, _LOCAL_BYTES, _SHARED_BYTES):
            value = c_int()
            self._driver.cuFuncGetAttribute(byref(value), c_int(attribute), self.kernel(name))
            values.append(value.value)
        return Resources(*values)

    def close(self) -> None:
        """Unload the kernels."""
        self._driver.cuModuleUnload(self._handle)


class Graph:
    """Launches that are given to the stream as one."""

    def __init__(self, driver: _Driver, handle: c_void_p, stream: c_void_p) -> None:
        """Keep what `Gpu.capture` made."""
        self._driver, self._handle, self._stream = driver, handle, stream

    def launch(self) -> None:
        """Give the launches to the stream."""
        self._driver.cuGraphLaunch(self._handle, self._stream)

    def close(self) -> None:
        """Free the graph."""
        self._driver.cuGraphExecDestroy(self._handle)


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
