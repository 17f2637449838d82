"""The service's resources: each method builds a Call, sends it and returns; no resource sees the client."""
