"""The REST API under `/api/v1`: routes parse, call the planner and answer; no arithmetic here."""
