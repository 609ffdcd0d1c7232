"""What joins a vision encoder to a language model: resamplers, projectors, experts and their router."""

from unimed.models.connectors.configuration import ConnectorConfig, ConnectorError
from unimed.models.connectors.modeling import Connector, ConnectorOutput, build_connector
from unimed.models.connectors.statistics import RoutingStatistics, draw_routing

__all__ = [
    "Connector",
    "ConnectorConfig",
    "ConnectorError",
    "ConnectorOutput",
    "RoutingStatistics",
    "build_connector",
    "draw_routing",
]
