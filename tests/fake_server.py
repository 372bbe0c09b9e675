"""The HTTP server below the fakes of the tests."""

from http.server import ThreadingHTTPServer


class QuietServer(ThreadingHTTPServer):
    """A server that does not report clients that were killed while they waited."""

    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_):
        pass
