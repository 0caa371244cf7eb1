"""`GET /_public/metrics`: what Prometheus collects, in the format it accepts."""

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, get_args

from aiohttp import web

from avtomatika_common.backend.ports import Inspection, OrphanKind
from avtomatika_core.consistency import FlawKind
from avtomatika_gateway.bodies import json_response

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

_KINDS = sorted({*FlawKind, *get_args(OrphanKind)})


class Metrics:
    """Numbers of the whole deployment: any of its gateways tells the same."""

    def __init__(self, inspection: Inspection) -> None:
        self._inspection = inspection

    def add_to(self, app: web.Application) -> None:
        app.router.add_get("/_public/metrics", self._show)

    async def _show(self, request: web.Request) -> web.Response:
        if find_spec("prometheus_client") is None:
            return json_response({"error": "Metrics need the extra 'telemetry'."}, 501)
        # Here and not at the top: without the extra there is nothing to import.
        from prometheus_client.exposition import choose_encoder  # noqa: PLC0415
        from prometheus_client.registry import CollectorRegistry  # noqa: PLC0415

        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collected([_mended(await self._inspection.mended())]))
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(registry), headers={"Content-Type": content_type})


class _Collected:
    """Metrics as a registry asks for them."""

    def __init__(self, metrics: Iterable["Metric"]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable["Metric"]:
        return self._metrics


def _mended(counts: Mapping[str, int]) -> "Metric":
    """Each kind there is, so that an alert sees the first one of it."""
    from prometheus_client.metrics_core import CounterMetricFamily  # noqa: PLC0415

    family = CounterMetricFamily(
        "avtomatika_reconciler_mended",
        "Inconsistencies that the watchers found and mended.",
        labels=["kind"],
    )
    for kind in _KINDS:
        family.add_metric([kind], counts.get(kind, 0))
    return family
