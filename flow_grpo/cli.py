"""The `flow-grpo` command. Every part is imported only when its command is used."""

import argparse
import importlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

REWARDS = (
    "geneval",
    "ocr",
    "pickscore",
    "clipscore",
    "hpsv2",
    "aesthetic",
    "vlm_judge",
    "jpeg_compressibility",
)
# Commands that read their own arguments: name -> (module with main(argv) -> int, what it does).
DELEGATED = {
    "train": ("trainer.train", "train a model: flow-grpo train RECIPE [--key=value ...]"),
    "evaluate": ("trainer.evaluate", "score a model on held-out prompts: flow-grpo evaluate RECIPE_OR_MODEL ..."),
    "convert-detector": (
        "reward_services.geneval.convert",
        "make the detector's mmdet checkpoint run without mmdet",
    ),
    "score": ("flow_grpo.score", "score pictures on disk: flow-grpo score FOLDER_OR_JSONL --url URL --out FILE"),
    "prompts": ("trainer.make_prompts", "write a prompt set: flow-grpo prompts geneval|ocr --count N --out FILE"),
    "demo": ("flow_grpo.demo", "the whole path on this machine: services, gateway, training, evaluation"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0, 1 after a failure, 2 for wrong usage."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for client in ("httpx", "httpx2"):  # they report every request, httpx2 those of the hub's client
        logging.getLogger(client).setLevel(logging.WARNING)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its remarks on absent torchvision, which nothing needs
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # every retry, twice; what came of them is told at the end
    if os.getpid() == 1:  # the first process of a container: without a handler the kernel would drop the signal
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        if arguments and arguments[0] in DELEGATED:
            return _delegate(arguments[0], arguments[1:])
        return _serve(_parser().parse_args(arguments))
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flow-grpo",
        description="Online reinforcement learning for text-to-image flow models, with rewards served over HTTP.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser(
        "serve",
        help="serve a reward, the gateway before several, or a worker for its jobs",
        description="Serves a reward or the gateway over HTTP, or works off its jobs, until SIGTERM or Ctrl-C. "
        "The environment variable REWARD_TOKEN, where set, is asked of callers as bearer token; without it only a "
        "loopback address is served, unless REWARD_TRUST_NETWORK=1. The gateway also takes REWARD_CLIENT_TOKENS "
        "(NAME=TOKEN NAME=TOKEN) and REWARD_REPLICAS (REWARD=URL,URL REWARD=URL).",
    )
    serve.add_argument(
        "target",
        metavar="TARGET",
        help=f"{', '.join(REWARDS)}, gateway, jobs-worker, or MODULE:CLASS for a scorer of your own",
    )
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    serve.add_argument("--port", type=int, default=8000, help="port; 0 takes a free one (default: %(default)s)")
    serve.add_argument(
        "--workers",
        type=_positive,
        default=1,
        metavar="N",
        help="processes of a reward behind the port, each with a scorer of its own (default: %(default)s)",
    )
    serve.add_argument("--handover", type=int, help=argparse.SUPPRESS)  # a worker's channel, given by its supervisor
    serve.add_argument("--ready-file", type=Path, metavar="FILE", help="write the address here once it answers")
    serve.add_argument("--config", type=Path, metavar="FILE", help="the YAML file of gateway and jobs-worker")
    serve.add_argument(
        "--option",
        action="append",
        default=[],
        type=_key_value,
        metavar="KEY=VALUE",
        help="an argument of the scorer, e.g. --option detector=shapes; repeatable",
    )
    serve.add_argument(
        "--log-format", choices=("text", "json"), default="text", help="lines of the log (default: %(default)s)"
    )
    for name, (_, text) in DELEGATED.items():
        commands.add_parser(name, help=text, add_help=False)
    return parser


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a count of 1 or more")
    return int(text)


def _key_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def _serve(args: argparse.Namespace) -> int:
    is_gateway, is_worker = args.target == "gateway", args.target == "jobs-worker"
    if is_gateway and args.config is None and not os.environ.get("REWARD_REPLICAS"):
        return _complain("serve gateway takes --config FILE or replicas from REWARD_REPLICAS", status=2)
    if is_worker and args.config is None:
        return _complain("serve jobs-worker takes --config FILE", status=2)
    if (is_gateway or is_worker) and (args.option or args.workers > 1):
        return _complain(f"serve {args.target} takes no --option and no --workers", status=2)
    if not (is_gateway or is_worker) and args.config is not None:
        fault = "--config belongs to serve gateway and serve jobs-worker; a reward takes --option KEY=VALUE"
        return _complain(fault, status=2)
    try:
        from flow_grpo.runner import end_with_parent
        from reward_api import logs, tracing
        from reward_api.listening import ServiceFailed

        end_with_parent()
        logs.configure(args.log_format)
        tracing.start_from_environment(args.target)
        if is_worker:
            return _work(args)
        if is_gateway:
            _serve_gateway(args)
        elif args.workers > 1:
            return _serve_workers(args)
        else:
            _serve_reward(args)
    except ModuleNotFoundError as error:
        return _complain(_missing(error, "gateway" if is_worker else args.target))
    except (ValueError, OSError, ServiceFailed) as error:
        return _complain(f"serve {args.target}: {error}")
    return 0


def _serve_reward(args: argparse.Namespace) -> None:
    from reward_api.client import TOKEN_VARIABLE
    from reward_api.handover import Handover
    from reward_api.listening import serve
    from reward_services.registry import load_scorer
    from reward_services.service import create_app

    token = os.environ.get(TOKEN_VARIABLE) or None
    handover = Handover(args.handover) if args.handover is not None else None
    app = create_app(load_scorer(args.target, dict(args.option)), token=token, handover=handover)
    _say_where(args)
    failure = app.state.failure
    serve(app, args.host, args.port, args.ready_file, token=token, failure=failure, handover=handover)


def _serve_workers(args: argparse.Namespace) -> int:
    from flow_grpo.workers import serve_workers
    from reward_api.client import TOKEN_VARIABLE
    from reward_api.listening import check_exposure

    check_exposure(args.host, os.environ.get(TOKEN_VARIABLE) or None)
    _say_where(args)
    options = [word for key, value in args.option for word in ("--option", f"{key}={value}")]
    return serve_workers([args.target, *options], args.workers, args.host, args.port, args.ready_file)


def _serve_gateway(args: argparse.Namespace) -> None:
    from gateway.app import create_app
    from gateway.clients import tokens_of
    from gateway.config import load_config
    from reward_api.listening import serve

    token = tokens_of(os.environ)
    config = load_config(args.config, os.environ)
    app = create_app(config, token=token, config_file=args.config)
    _say_where(args)

    def begin_to_stop() -> None:
        app.state.gateway.start_draining()
        app.state.page.hub.close()

    serve(
        app,
        args.host,
        args.port,
        args.ready_file,
        token=token,
        on_stop=begin_to_stop,
        notice_s=config.drain_notice_s,
        drain_s=config.drain_s + 1,
    )


def _say_where(args: argparse.Namespace) -> None:
    if args.port and args.handover is None:
        print(f"serving {args.target} at http://{args.host}:{args.port} (/docs), Ctrl-C ends it", file=sys.stderr)


def _work(args: argparse.Namespace) -> int:
    from gateway.config import load_config
    from gateway.jobs.worker import run_worker

    config = load_config(args.config)
    if config.jobs is None:
        return _complain(f"serve jobs-worker: {args.config} has no section jobs")
    run_worker(config.jobs, args.ready_file)
    return 0


def _delegate(command: str, arguments: Sequence[str]) -> int:
    name = DELEGATED[command][0]
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        extra = {"demo": "demo", "convert-detector": "geneval"}.get(command, "trainer")
        return _complain(_missing(error, extra))
    return cast(int, module.main(arguments))


def _missing(error: ModuleNotFoundError, extra: str) -> str:
    hint = f"; pip install 'flow-grpo[{extra}]' brings what {extra} needs" if ":" not in extra else ""
    return f"{error}{hint}"


def _complain(message: str, *, status: int = 1) -> int:
    print(f"flow-grpo: {message}", file=sys.stderr)
    return status
