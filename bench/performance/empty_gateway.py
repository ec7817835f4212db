"""A gateway worker that does nothing: it accepts every purchase at once, on a listening socket that it inherits.

It prints "ready" and ends when its standard input does, so it never outlives its parent.
"""

import asyncio
import socket
import sys

import uvloop
from aiohttp import web

ORDER = "01900000-0000-7000-8000-000000000000"
LOCATION = {"Location": f"/api/order/{ORDER}/status"}
BODY = {
    "success": True,
    "orderId": ORDER,
    "status": "queued",
    "message": "Order received",
    "checkStatusUrl": f"/order/{ORDER}/status",
    "product": {"id": 1, "name": "iPhone 15 Pro - Flash Sale", "price": "999.99"},
}
READY = b"ready\n"


async def _accept(request: web.Request) -> web.Response:
    await request.json()
    return web.json_response(BODY, status=202, headers=LOCATION)


async def _serve(sock: socket.socket) -> None:
    app = web.Application()
    app.router.add_post("/api/order/buy-flash", _accept)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.SockSite(runner, sock).start()
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    await asyncio.to_thread(sys.stdin.buffer.read)
    await runner.cleanup()


def main() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(socket.socket(fileno=int(sys.argv[1]))))


if __name__ == "__main__":
    main()
