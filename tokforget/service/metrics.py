"""Metrics for Prometheus. Labels are routes, statuses and versions; they contain nothing from requests."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from tokforget import __version__


CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """
    The metrics of one service.

    Args:
        waiting (`Callable`): Returns the number of waiting requests.
        held (`Callable`): Returns the bytes of bodies that are held.
    """

    def __init__(self, waiting: Callable[[], int] = lambda: 0, held: Callable[[], int] = lambda: 0):
        disable_created_metrics()  # the creation time of each series would be a third of the page
        self.registry = CollectorRegistry()
        one = {"registry": self.registry}
        Gauge("tokforget_info", "1, and the version as a label.", ["version"], **one).labels(__version__).set(1)
        self.requests = Counter("tokforget_requests", "Requests answered.", ["route", "status"], **one)
        self.seconds = Histogram("tokforget_request_seconds", "Seconds from a request's headers to the end of its answer.",
                                 ["route"], buckets=_SECONDS, **one)  # fmt: skip
        self.tokens_in = Counter("tokforget_tokens_in", "Tokens before compressing.", ["route"], **one)
        self.tokens_out = Counter("tokforget_tokens_out", "Tokens after compressing.", ["route"], **one)
        self.batch = Histogram(
            "tokforget_batch_requests", "Requests compressed in one call.", buckets=(1, 2, 4, 8, 16, 32), **one
        )
        self.restarts = Counter("tokforget_worker_restarts", "Processes started in place of one that ended.", **one)
        self.faults = Counter("tokforget_faults", "Errors that should not happen.", **one)
        Gauge("tokforget_queue_requests", "Requests that wait for a process.", **one).set_function(waiting)
        Gauge("tokforget_held_bytes", "Bytes of requests that are read, wait or run.", **one).set_function(held)

    def page(self) -> bytes:
        return generate_latest(self.registry)
