"""All scenarios by their names."""

from typing import Final

from bench.scenario import Scenario
from bench.scenarios import connect_storm, fleets, heartbeat, hostile, http, plays, pushes, scrape

SCENARIOS: Final[dict[str, Scenario]] = {
    scenario.name: scenario
    for module in (heartbeat, connect_storm, fleets, plays, pushes, http, scrape, hostile)
    for scenario in module.SCENARIOS
}
