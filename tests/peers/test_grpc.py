"""gRPC as it is used: grpcio's client, the tunnel, grpcio's server on plain HTTP/2 with prior knowledge."""

import contextlib
import os
import pathlib
import queue
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from world import DOMAIN, World

MIB = 1 << 20
ROOMY = [("grpc.max_receive_message_length", 16 * MIB), ("grpc.max_send_message_length", 16 * MIB)]


class Service(grpc.GenericRpcHandler):
    """Methods over plain bytes: no generated code is needed to test the way there and back."""

    def __init__(self):
        self.cancelled = threading.Event()
        self.deadlines = []

    def service(self, call):
        behaviour = getattr(self, call.method.rpartition("/")[2], None)
        return behaviour() if behaviour else None

    def Echo(self):
        def echo(message, context):
            self.deadlines.append(context.time_remaining())
            metadata = [pair for pair in context.invocation_metadata() if pair[0].startswith("my-")]
            context.send_initial_metadata([("x-initial", "1"), *metadata])
            context.set_trailing_metadata([("x-trailing", "2"), ("x-bytes-bin", b"\x00\xff\x80")])
            return message

        return grpc.unary_unary_rpc_method_handler(echo)

    def Fail(self):
        def fail(message, context):
            context.set_trailing_metadata([("x-why", "because")])
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "nicht jetzt ✓")

        return grpc.unary_unary_rpc_method_handler(fail)

    def Count(self):
        def count(message, context):
            for n in range(int(message)):
                yield str(n).encode()

        return grpc.unary_stream_rpc_method_handler(count)

    def CountThenFail(self):
        def count(message, context):
            yield b"one"
            yield b"two"
            context.abort(grpc.StatusCode.DATA_LOSS, "the rest is gone")

        return grpc.unary_stream_rpc_method_handler(count)

    def Sum(self):
        return grpc.stream_unary_rpc_method_handler(lambda messages, context: str(sum(map(int, messages))).encode())

    def Chat(self):
        def chat(messages, context):
            for message in messages:
                yield b"re: " + message

        return grpc.stream_stream_rpc_method_handler(chat)

    def Forever(self):
        def forever(message, context):
            context.add_callback(self.cancelled.set)
            yield b"started"
            self.cancelled.wait(20)

        return grpc.unary_stream_rpc_method_handler(forever)


@pytest.fixture(scope="module")
def service():
    return Service()


@pytest.fixture(scope="module")
def channel(service):
    server = grpc.server(ThreadPoolExecutor(16), handlers=[service], options=ROOMY)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with World() as world, contextlib.ExitStack() as stack:
        stack.callback(lambda: server.stop(0).wait())
        world.client(f"http://127.0.0.1:{port}")
        credentials = grpc.ssl_channel_credentials(pathlib.Path(world.relay.ca).read_bytes())
        options = [("grpc.ssl_target_name_override", f"billing.{DOMAIN}"), ("grpc.enable_http_proxy", 0), *ROOMY]
        with grpc.secure_channel(world.authority(), credentials, options) as channel:
            yield channel


def test_unary_with_metadata(channel, service):
    sent = [("my-text", "a, b"), ("my-text", "second"), ("my-blob-bin", bytes(range(256)))]
    answer, call = channel.unary_unary("/hook.Service/Echo").with_call(b"hello", timeout=20, metadata=sent)
    assert answer == b"hello" and call.code() == grpc.StatusCode.OK
    initial = [tuple(pair) for pair in call.initial_metadata() if pair[0].startswith(("x-initial", "my-"))]
    assert sorted(initial) == sorted([("x-initial", "1"), *sent])
    assert set(map(tuple, call.trailing_metadata())) >= {("x-trailing", "2"), ("x-bytes-bin", b"\x00\xff\x80")}
    assert 0 < service.deadlines[-1] <= 20


def test_empty_and_large_messages(channel):
    echo = channel.unary_unary("/hook.Service/Echo")
    for message in (b"", b"\0", os.urandom(4 * MIB), os.urandom(9 * MIB)):
        assert echo(message, timeout=60) == message


def test_status_in_trailers(channel):
    with pytest.raises(grpc.RpcError) as failure:
        channel.unary_unary("/hook.Service/Fail")(b"", timeout=20)
    assert failure.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert failure.value.details() == "nicht jetzt ✓"
    assert ("x-why", "because") in set(map(tuple, failure.value.trailing_metadata()))


def test_unknown_method(channel):
    with pytest.raises(grpc.RpcError) as failure:
        channel.unary_unary("/hook.Service/Nothing")(b"", timeout=20)
    assert failure.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_server_streaming(channel):
    assert list(channel.unary_stream("/hook.Service/Count")(b"500", timeout=30)) == [
        str(n).encode() for n in range(500)
    ]


def test_server_streaming_that_fails_midway(channel):
    got = []
    with pytest.raises(grpc.RpcError) as failure:
        got.extend(iter(message for message in channel.unary_stream("/hook.Service/CountThenFail")(b"", timeout=20)))
    assert failure.value.code() == grpc.StatusCode.DATA_LOSS and failure.value.details() == "the rest is gone"


def test_client_streaming(channel):
    numbers = (str(n).encode() for n in range(500))
    assert channel.stream_unary("/hook.Service/Sum")(numbers, timeout=30) == str(sum(range(500))).encode()


def test_bidirectional_interleaved(channel):
    """Each message is sent only after the answer to the one before has come."""
    outbox = queue.SimpleQueue()
    answers = channel.stream_stream("/hook.Service/Chat")(iter(outbox.get, None), timeout=30)
    for n in range(100):
        outbox.put(str(n).encode())
        assert next(answers) == f"re: {n}".encode()
    outbox.put(None)
    assert list(answers) == [] and answers.code() == grpc.StatusCode.OK


def test_many_calls_at_once(channel):
    echo = channel.unary_unary("/hook.Service/Echo")
    calls = [echo.future(str(n).encode(), timeout=60) for n in range(200)]
    assert [call.result() for call in calls] == [str(n).encode() for n in range(200)]


def test_a_cancelled_call_reaches_the_app(channel, service):
    service.cancelled.clear()
    stream = channel.unary_stream("/hook.Service/Forever")(b"", timeout=20)
    assert next(stream) == b"started" and not service.cancelled.is_set()
    stream.cancel()
    assert service.cancelled.wait(10), "the app never learned of the cancelled call"
