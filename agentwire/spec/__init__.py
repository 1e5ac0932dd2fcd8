"""Plain data that every module may read: the scenario schema, agent specs, routes."""
