"""The laboratory: servers, fleets, faults and measurements. Nothing of the service knows it."""
