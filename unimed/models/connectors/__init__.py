"""Connectors between a vision encoder and a language model: resamplers, projectors, experts and their router."""

from unimed.models.connectors.configuration import ConnectorConfig, ConnectorError
from unimed.models.connectors.modeling import (
    Connector,
    ConnectorBase,
    ConnectorOutput,
    build_connector,
    named_connector,
)
from unimed.models.connectors.statistics import RoutingStatistics, draw_routing

__all__ = [
    "Connector",
    "ConnectorBase",
    "ConnectorConfig",
    "ConnectorError",
    "ConnectorOutput",
    "RoutingStatistics",
    "build_connector",
    "draw_routing",
    "named_connector",
]
