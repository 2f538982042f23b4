"""HTTP around `serving.models`: one module a protocol, `app` puts them together."""
