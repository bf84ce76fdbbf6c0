"""An S3-compatible store, moto's, on a free port that it prints. Answers one request after another, so that conditional writes, which
moto checks and then carries out, are one step as they are in a real store."""

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server


class Quiet(WSGIRequestHandler):
    """Logs nothing."""

    def log(self, *arguments):
        pass


application = DomainDispatcherApplication(create_backend_app)
server = make_server("127.0.0.1", 0, application, threaded=False, request_handler=Quiet)
print(server.port, flush=True)
server.serve_forever()
