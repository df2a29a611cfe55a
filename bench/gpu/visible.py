#!/usr/bin/env python3
"""Whether a process may map and write, by CUDA IPC, memory of a GPU that it does not see.

    python3 bench/gpu/visible.py

Two processes, an owner of memory on one GPU and a writer on the other, first with both GPUs in
CUDA_VISIBLE_DEVICES of both, then with its own alone in each. Says what the owner finds in its
memory. Needs two GPUs, and cupy.
"""

import os
import subprocess
import sys

BYTES = 1 << 20
#: cupy numbers what a process sees, from 0.
CASES = [("both see both", "1,0", "0,1"), ("each sees its own", "1", "0")]


def owner() -> None:
    import numpy
    from cupy.cuda import runtime

    memory = runtime.malloc(BYTES)
    runtime.memset(memory, 0, BYTES)
    runtime.deviceSynchronize()
    sys.stdout.buffer.write(runtime.ipcGetMemHandle(memory))
    sys.stdout.flush()
    sys.stdin.readline()
    found = numpy.zeros(BYTES, numpy.uint8)
    device_to_host = 2
    runtime.memcpy(found.ctypes.data, memory, BYTES, device_to_host)
    print(f"  the owner finds {int((found == 2).sum())} of {BYTES} bytes written", file=sys.stderr)


def writer(handle: bytes) -> None:
    import cupy
    from cupy.cuda import MemoryPointer, UnownedMemory, runtime

    enable_peer_access = 1
    try:
        memory = runtime.ipcOpenMemHandle(handle, enable_peer_access)
        pointer = MemoryPointer(UnownedMemory(memory, BYTES, None), 0)
        cupy.ndarray((BYTES,), cupy.uint8, pointer)[...] = 2
        runtime.deviceSynchronize()
        print("  the writer has mapped and written it", flush=True)
    except Exception as error:  # whatever the driver says is the answer
        print(f"  the writer cannot: {error}", flush=True)


def main() -> None:
    for name, sees, writer_sees in CASES:
        print(f"{name}: owner CUDA_VISIBLE_DEVICES={sees}, writer {writer_sees}", flush=True)
        own, write = (dict(os.environ, CUDA_VISIBLE_DEVICES=v) for v in (sees, writer_sees))
        command = [sys.executable, __file__]
        pipe = subprocess.PIPE
        process = subprocess.Popen([*command, "owner"], env=own, stdin=pipe, stdout=pipe)
        handle = process.stdout.read(64)
        subprocess.run([*command, "writer", handle.hex()], env=write, check=False)
        process.communicate(b"\n")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["owner"]:
            owner()
        case ["writer", handle]:
            writer(bytes.fromhex(handle))
        case _:
            main()
