"""The HTTP server below the fakes of the tests."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Asks the server's `respond(request, JSON lines)`: (status, content), "drop" or "drip"."""

    protocol_version = "HTTP/1.1"

    def serve(self):
        lines = self.rfile.read(int(self.headers.get("Content-Length") or 0)).splitlines()
        answer = self.server.respond(self, [json.loads(line) for line in lines])
        if answer == "drop":
            self.close_connection = True
            self.connection.shutdown(2)
            return
        if answer == "drip":  # a byte now and then, longer than anybody waits
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
            for _ in range(100):
                time.sleep(0.05)
                self.wfile.write(b" ")
            return
        data = json.dumps(answer[1]).encode()
        self.send_response(answer[0])
        for header in self.server.headers.items():
            self.send_header(*header)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_DELETE = serve

    def log_message(self, *_):
        pass


class FakeServer(ThreadingHTTPServer):
    """`with FakeServer() as fake:` serves at `fake.url`; killed clients are not reported."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def handle_error(self, *_):
        pass
