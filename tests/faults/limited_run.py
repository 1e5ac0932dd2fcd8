"""A runtime of fake agents in a process with few descriptors: ``limited_run.py <limit>``.

Prints its invitation, and answers each line of stdin with one line: the label of its text as the
agents answer it, and the memory of this process in MiB.
"""

import asyncio
import json
import os
import resource
import sys

import psutil
from fake_run import fake_runtime


async def main(limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    async with fake_runtime() as runtime:
        print(json.dumps(runtime.invitation()), flush=True)
        while text := (await asyncio.to_thread(sys.stdin.readline)).strip():
            reply = await runtime.send("sender", "receiver", text)
            memory = psutil.Process(os.getpid()).memory_info().rss / 2**20
            print(json.dumps([reply.label, memory]), flush=True)


asyncio.run(main(int(sys.argv[1])))
