"""A runtime of fake agents in a process with few descriptors: ``limited_run.py <limit> [folder]``.

Prints its invitation, and answers each line of stdin with one line: the label of its text as the
agents answer it, and the memory of this process in MiB. With a folder for keys, the receiver joins
by tcp as from another machine; the invitation's ``remote`` says where.
"""

import asyncio
import contextlib
import json
import os
import resource
import sys
from pathlib import Path

import psutil
from fake_run import fake_runtime
from test_two_hosts import Elsewhere, started


async def main(limit: int, keys: str) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    async with contextlib.AsyncExitStack() as stack:
        if keys:
            elsewhere = Elsewhere(Path(keys))
            stack.callback(elsewhere.stop)
            runtime = fake_runtime(remote=elsewhere.remote("tcp://127.0.0.1:*"))
            await stack.enter_async_context(started(runtime, elsewhere, []))
        else:
            runtime = await stack.enter_async_context(fake_runtime())
        about = {**runtime.invitation(), "remote": runtime.remote_endpoint}
        print(json.dumps(about), flush=True)
        while text := (await asyncio.to_thread(sys.stdin.readline)).strip():
            reply = await runtime.send("sender", "receiver", text)
            memory = psutil.Process(os.getpid()).memory_info().rss / 2**20
            print(json.dumps([reply.label, memory]), flush=True)


asyncio.run(main(int(sys.argv[1]), "".join(sys.argv[2:])))
