r"""Serve a model with its passages' adapters: an OpenAI-compatible interface, and a page at `/`.

    python src/serve.py --model_name data/demo/demo-model --prompts demo --dataset demo \
        --learning_rate 4e-3 --max_new_tokens 12 --index_name demo     # after: make demo

    PRAG_API_KEY=a-secret python src/serve.py --model_name llama3.2-1b-instruct --dataset mydocs \
        --index_name mydocs --host 0.0.0.0

The flags of `encode.py` find the adapters, those of all data types of the data set. Requests that
wait are answered in one batch, each row with its own merged adapters (arXiv:2501.15915, section
3.3). A request may choose the method, the merge and the passages: docs/serving.md. Beyond loopback
the environment variable PRAG_API_KEY must hold a key, which clients send as a bearer token.
Needs: pip install -r requirements-serve.txt. Ctrl-C or SIGTERM finishes what runs, and ends.
"""

import argparse
import ipaddress
import os
import socket

from utils.arguments import new_parser, positive_integer, whole_number
from utils.layout import folder_name
from utils.recipe import AT_ONCE, Recipe, add_flags, parse_recipe
from utils.running import InputError, run_stage
from utils.serving.requests import add_session_flags

KEY = "PRAG_API_KEY"
CONNECTIONS = 500  # at once; others get 503
GRACE = 120  # seconds that running requests have after SIGTERM


def parse_arguments(arguments: list[str] | None = None) -> tuple[argparse.Namespace, Recipe]:
    """The command line."""
    parser = new_parser(__doc__)
    groups = ("model", "data", "adapter", "answer", "merging")
    method = {
        "required": False,
        "default": "combine",
        "choices": AT_ONCE,
        "help": "method of a request without one",
    }
    add_flags(parser, *groups, inference_method=method)
    add_session_flags(parser)
    add = parser.add_argument_group("serving").add_argument
    where = f"address to listen on; one beyond loopback needs a key in the variable {KEY}"
    add("--host", default="127.0.0.1", help=where)
    add("--port", type=whole_number, default=8000, help="port; 0: one that is free")
    add("--queue", type=positive_integer, default=64, help="requests that may wait; others get 429")
    return parse_recipe(parser, arguments)


def main() -> None:
    """Check, load, serve until the end."""
    options, recipe = parse_arguments()
    # torch takes seconds to import: not before the flags are known to be good
    try:
        import uvicorn

        from utils.serving.app import new_app
    except ModuleNotFoundError as error:
        raise InputError(
            f"serve.py needs the package {error.name}; run: pip install -r requirements-serve.txt"
        ) from None
    from utils.processes import refuse_launcher
    from utils.serving.worker import Worker
    from utils.session import Session

    # 1. Check everything that needs no model
    refuse_launcher("serve.py")
    key = os.environ.get(KEY) or None
    listening = open_port(options.host, options.port, key)
    session = Session(recipe, options, held=options.adapter_memory << 20)

    # 2. Load, and serve
    session.load()
    name = folder_name(recipe.model_name)
    app = new_app(Worker(session, options.queue), name, options.topk, key, options.host)
    limits = {"limit_concurrency": CONNECTIONS, "timeout_graceful_shutdown": GRACE}
    config = uvicorn.Config(app, log_level="warning", proxy_headers=False, **limits)
    if session.several:
        print(f"{session.several} passages have more than one adapter: the first is used")
    shown = f"[{options.host}]" if ":" in options.host else options.host
    listening.listen()  # whoever reads the address can connect
    address = f"http://{shown}:{listening.getsockname()[1]}/"
    print(f"{name} with {len(session.by_text)} encoded passages at {address}", flush=True)
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:  # which uvicorn passes on when it has ended
        print("what ran has been answered; ended")


def open_port(host: str, port: int, key: str | None) -> socket.socket:
    """The socket to listen on. Raises `InputError` without a key beyond loopback, or if the port
    cannot be had."""
    if not key and not is_loopback(host):
        raise InputError(
            f"--host {host} can be reached from other machines; set the variable {KEY} to a key "
            "that clients must send, or leave --host out"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"--host {host} --port {port} cannot be listened on ({reason}); give others"
        ) from None
    return listening


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    run_stage(main)
