"""An origin for real clients: files, a Git repository, a WebSocket, events and a package registry's metadata.

    python -m tests.clients.origin LOG LEAF FOLDER

HTTP/1.1 over TLS on port 9444, gRPC on 9445. What lies in FOLDER is served as files, `FOLDER/git` by `git http-backend`.
Every request's head is on record, a gRPC call's metadata too.
"""

import asyncio
import os
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
from aiohttp import WSMsgType, web

from deploy.demo.json_lines import Log

TLS_PORT = 9444
GRPC_PORT = 9445
ECHO = "/demo.Echo"
"""The gRPC service; its messages are bytes as they are."""

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Origin:
    """The HTTP half."""

    def __init__(self, log: Log, folder: Path) -> None:
        self._log = log
        self._folder = folder
        self._next_event = asyncio.Event()

    def application(self) -> web.Application:
        """Return what is served."""
        application = web.Application(middlewares=[self._record], client_max_size=1 << 30)
        application.router.add_get("/ws", self._websocket)
        application.router.add_get("/events", self._events)
        application.router.add_post("/events/next", self._go_on)
        application.router.add_route("*", "/length", self._length)
        application.router.add_post("/v1/messages", self._message)
        application.router.add_post("/v1/chat/completions", self._completion)
        application.router.add_route("*", "/git/{path:.+}", self._git)
        application.router.add_get("/{path:.+}", self._file)
        return application

    @web.middleware
    async def _record(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        fields = [(name.lower(), value) for name, value in request.headers.items()]
        self._log.write("request", method=request.method, path=request.path, headers=fields)
        return await handler(request)

    async def _websocket(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                await socket.send_str(message.data)
            elif message.type is WSMsgType.BINARY:
                await socket.send_bytes(message.data)
        return socket

    async def _events(self, request: web.Request) -> web.StreamResponse:
        """Send one event, and the second when somebody who saw the first has asked for it."""
        self._next_event.clear()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: first\n\n")
        await self._next_event.wait()
        await response.write(b"data: second\n\n")
        return response

    async def _go_on(self, _request: web.Request) -> web.StreamResponse:
        self._next_event.set()
        return web.Response()

    async def _length(self, request: web.Request) -> web.StreamResponse:
        """Answer with the body's length and how it was framed."""
        length = 0
        async for chunk in request.content.iter_any():
            length += len(chunk)
        return web.json_response(
            {"length": length, "framing": request.headers.get("Transfer-Encoding", "length")}
        )

    async def _message(self, _request: web.Request) -> web.StreamResponse:
        """Answer as Anthropic's messages API does."""
        content = [{"type": "text", "text": "hello"}]
        return web.json_response({"id": "1", "type": "message", "role": "assistant", "content": content})

    async def _completion(self, _request: web.Request) -> web.StreamResponse:
        """Answer as OpenAI's chat completions API does."""
        message = {"role": "assistant", "content": "hello"}
        return web.json_response({"id": "1", "choices": [{"index": 0, "message": message}]})

    async def _file(self, request: web.Request) -> web.StreamResponse:
        path = self._folder / request.match_info["path"]
        return web.FileResponse(path / "index.html" if path.is_dir() else path)

    async def _git(self, request: web.Request) -> web.StreamResponse:
        """Pass a request to git-http-backend(1), a CGI program (RFC 3875)."""
        body = await request.read()
        settings = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(self._folder / "git"),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": f"/{request.match_info['path']}",
            "REQUEST_METHOD": request.method,
            "QUERY_STRING": request.query_string,
            "CONTENT_TYPE": request.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": request.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
            "REMOTE_USER": "whoever",  # without one it takes no push
        }
        program = await asyncio.create_subprocess_exec(
            "git", "http-backend", env=settings, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        answer, _ = await program.communicate(body)
        head, _, content = answer.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        status = int(fields.pop("Status", "200").split()[0])
        return web.Response(status=status, headers=fields, body=content)


class _Echo(grpc.GenericRpcHandler):
    """The gRPC half: one call of each kind that is in common use."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        fields = [(name, str(value)) for name, value in handler_call_details.invocation_metadata]
        self._log.write("request", method="gRPC", path=handler_call_details.method, headers=fields)
        return {
            f"{ECHO}/Once": grpc.unary_unary_rpc_method_handler(self._once),
            f"{ECHO}/Thrice": grpc.unary_stream_rpc_method_handler(self._thrice),
            f"{ECHO}/Talk": grpc.stream_stream_rpc_method_handler(self._talk),
        }.get(handler_call_details.method)

    async def _once(self, message: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        context.set_trailing_metadata((("sent-after", "the body"),))
        return message

    async def _thrice(
        self, message: bytes, _context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> AsyncIterator[bytes]:
        for _ in range(3):
            yield message

    async def _talk(
        self, messages: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> AsyncIterator[bytes]:
        async for message in messages:
            if message == b"fail":
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as asked")
            yield message


async def _main(log_file: str, leaf: str, pem: bytes, folder: str) -> None:
    log = Log(Path(log_file))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(leaf)
    runner = web.AppRunner(Origin(log, Path(folder)).application())
    await runner.setup()
    await web.TCPSite(runner, None, TLS_PORT, ssl_context=context).start()

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_Echo(log),))
    server.add_secure_port(f"[::]:{GRPC_PORT}", grpc.ssl_server_credentials([(pem, pem)]))
    await server.start()
    print("ready", flush=True)  # noqa: T201 - the lab waits for it
    await server.wait_for_termination()


if __name__ == "__main__":
    _log, _leaf, _folder = sys.argv[1:]
    asyncio.run(_main(_log, _leaf, Path(_leaf).read_bytes(), _folder))
