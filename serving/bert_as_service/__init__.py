"""The wire of bert-as-service (ZeroMQ), for its unmodified clients: `bridge` puts the modules together."""
