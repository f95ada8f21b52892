"""Devices and processes: meshes, sharding rules, collectives, jobs."""
