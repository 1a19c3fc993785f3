"""The gRPC face: services, conversion, status table."""
