"""The laboratory: servers, fleets, faults and measurements. The service does not depend on it."""
