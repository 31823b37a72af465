"""picows, bare: parse and ack. WebSocket frames in Cython, callbacks instead of coroutines."""

from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_create_server

from bench.peers.answer import ack, listening, run


class Listener(WSListener):
    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.TEXT:
            transport.send(WSMsgType.TEXT, ack(frame.get_payload_as_memoryview()))
        elif frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code())
            transport.disconnect()


async def main() -> None:
    server = await ws_create_server(lambda request: Listener(), "127.0.0.1", 0, backlog=4096)
    listening(server)
    await server.serve_forever()


if __name__ == "__main__":
    run(main)
